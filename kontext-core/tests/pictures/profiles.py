"""Makes images with colour profiles of every kind in `profiles/`, and their 8-bit sRGB by Pillow's ImageCms.

`NAME.KIND` is the image, `NAME.rgb.png` the reference: colours by `ImageCms.profileToProfile` with its defaults, then
alpha composited on white. The profiles are written here byte by byte (ICC.1:2001-04 and ICC.1:2010), so that they are
small and free. Run `python profiles.py` in this folder with Pillow 13.0 (Little CMS 2.19) and numpy.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

HERE = Path(__file__).parent / "profiles"
D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def fixed(*values):
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def curve(gamma):
    """A gamma, a table of 16-bit values, or sRGB's parameters."""
    if gamma == "srgb":
        return b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    if isinstance(gamma, float):
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return b"curv\0\0\0\0" + struct.pack(f">I{len(gamma)}H", len(gamma), *gamma)


def profile(kind, space, pcs, version, tags):
    white = b"XYZ \0\0\0\0" + fixed(*D50)
    text = b"text\0\0\0\0made for tests\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    if version >= 4:
        mluc = b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", 8, 28) + "test".encode("utf-16-be")
        text = description = mluc
    tags = {b"desc": description, b"cprt": text, b"wtpt": white, **tags}
    offset, table, data, stored = 132 + 12 * len(tags), b"", b"", {}
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        if content not in stored:
            stored[content] = offset + len(data)
            data += content
        table += struct.pack(">4sII", name, stored[content], len(content))
    header = struct.pack(">I4sI4s4s4s12s4s", offset + len(data), b"test", version << 24, kind, space, pcs, bytes(12), b"acsp")
    header += bytes(28) + fixed(*D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def matrix(primaries, gammas, white=(0.3127, 0.3290), version=2):
    """A display's profile."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    xyz = xyz * np.linalg.solve(xyz, white)
    adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD
    columns = (adapt @ xyz).T
    tags = {}
    for name, column, gamma in zip(b"rgb", columns, gammas):
        tags[bytes([name]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*column)
        tags[bytes([name]) + b"TRC"] = curve(gamma)
    return profile(b"mntr", b"RGB ", b"XYZ ", version, tags)


def grid(channels, points):
    axes = np.meshgrid(*[np.linspace(0, 1, points)] * channels, indexing="ij")
    return np.stack([a.ravel() for a in axes], axis=-1)


def lab_of(colors, black):
    """A smooth device: lightness from `black` to 100."""
    if colors.shape[1] == 4:
        colors = (1 - colors[:, :3]) * (1 - colors[:, 3:])
    light = colors @ [0.25, 0.65, 0.10]
    a = 90 * (colors[:, 0] - colors[:, 1]) * (0.4 + 0.6 * light)
    b = 80 * (0.5 * colors[:, 0] + 0.5 * colors[:, 1] - colors[:, 2]) * (0.4 + 0.6 * light)
    return np.stack([black + (100 - black) * light ** 0.8, a, b], axis=-1)


def lut(space, channels, points, black, form):
    lab = lab_of(grid(channels, points), black)
    share = np.stack([lab[:, 0] / 100, (lab[:, 1] + 128) / 255, (lab[:, 2] + 128) / 255], axis=-1).clip(0, 1)
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    if form == "mft1":
        table = bytes(range(256))
        content = b"mft1\0\0\0\0" + bytes([channels, 3, points, 0]) + identity + table * channels
        content += (share * 255).round().astype(np.uint8).tobytes() + table * 3
    elif form == "mft2":
        # Version 2 stores lightness 100 as 0xff00.
        scale = np.array([65280.0, 255 * 256, 255 * 256])
        content = b"mft2\0\0\0\0" + bytes([channels, 3, points, 0]) + identity + struct.pack(">HH", 2, 2)
        content += struct.pack(">HH", 0, 65535) * channels
        content += (share * scale).round().astype(">u2").tobytes() + struct.pack(">HH", 0, 65535) * 3
    else:
        ends = curve(1.0)[:12] + struct.pack(">H", 256)
        ends = ends[:14] + bytes(2)
        clut = bytes([points] * channels) + bytes(16 - channels) + b"\2\0\0\0"
        clut += (share * 65535).round().astype(">u2").tobytes()
        clut += bytes(-len(clut) % 4)
        first = 32
        second = first + len(ends) * 3
        third = second + len(clut)
        content = b"mAB \0\0\0\0" + bytes([channels, 3, 0, 0]) + struct.pack(">IIIII", first, 0, 0, second, third)
        content += ends * 3 + clut + ends * channels
    version = 4 if form == "mAB" else 2
    return profile(b"prtr", space, b"Lab ", version, {b"A2B0": content})


SRGB = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]
P3 = [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)]
ADOBE = [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)]
TABLES = [[round(65535 * (i / 63) ** g) for i in range(64)] for g in (1.6, 1.9, 2.3)]

# All colours of a cube, and others.
STEPS = np.array([0, 51, 102, 153, 204, 255])
CUBE = np.stack(np.meshgrid(STEPS, STEPS, STEPS, indexing="ij"), axis=-1).reshape(-1, 3)
OTHERS = np.random.default_rng(7).integers(0, 256, (40, 3))
COLORS = np.concatenate([CUBE, OTHERS]).reshape(16, 16, 3).astype(np.uint8)
GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
# Blocks of one colour, which JPEG keeps.
BLOCKS = COLORS[::2, ::2].repeat(8, axis=0).repeat(8, axis=1)
INKS = np.random.default_rng(8).integers(0, 256, (8, 8, 4)).astype(np.uint8)
INKS[0, 0] = 255
INKS[0, 1] = 0
INKS = INKS.repeat(8, axis=0).repeat(8, axis=1)


def converted(picture):
    icc = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
    alpha = picture.convert("RGBA").getchannel("A")
    picture = {"P": lambda p: p.convert("RGB"), "RGBA": lambda p: p.convert("RGB"), "LA": lambda p: p.convert("L")}.get(
        picture.mode, lambda p: p
    )(picture)
    if icc.profile.xcolor_space == "RGB " and picture.mode == "L":
        picture = picture.convert("RGB")
    picture = ImageCms.profileToProfile(picture, icc, ImageCms.createProfile("sRGB"), outputMode="RGB")
    picture.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def keep(name, picture, kind, icc, **options):
    path = HERE / f"{name}.{kind}"
    picture.save(path, icc_profile=icc, **options)
    with Image.open(path) as stored:
        converted(stored).save(path.with_suffix(".rgb.png"), optimize=True)


def ycck(path):
    """Turns Pillow's inverted CMYK, whose planes were prepared, to YCCK by its marker."""
    data = bytearray(path.read_bytes())
    data[data.index(b"Adobe") + 11] = 2
    path.write_bytes(data)


def main():
    HERE.mkdir(exist_ok=True)
    rgb = Image.fromarray(COLORS, "RGB")
    p3 = matrix(P3, ["srgb"] * 3, version=4)
    keep("p3", rgb, "png", p3, optimize=True)
    keep("p3_lossless", rgb, "webp", p3, lossless=True)
    keep("p3_palette", rgb.quantize(60), "png", p3, optimize=True)
    keep("p3_alpha", Image.fromarray(np.dstack([COLORS, GREYS]), "RGBA"), "png", p3, optimize=True)
    keep("adobe", rgb, "png", matrix(ADOBE, [2.19921875] * 3), optimize=True)
    keep("adobe_blocks", Image.fromarray(BLOCKS, "RGB"), "jpg", matrix(ADOBE, [2.19921875] * 3), quality=100, subsampling=0)
    keep("tables", rgb, "png", matrix(P3, TABLES, white=(0.3457, 0.3585)), optimize=True)
    keep("lut8", rgb, "png", lut(b"RGB ", 3, 7, 12, "mft1"), optimize=True)
    keep("lut16", rgb, "png", lut(b"RGB ", 3, 7, 5, "mft2"), optimize=True)
    keep("lut_v4", rgb, "png", lut(b"RGB ", 3, 7, 3.1373, "mAB"), optimize=True)
    grey = profile(b"mntr", b"GRAY", b"XYZ ", 2, {b"kTRC": curve(1.8)})
    keep("grey", Image.fromarray(GREYS, "L"), "png", grey, optimize=True)
    keep("grey_alpha", Image.fromarray(np.dstack([GREYS, GREYS.T]), "LA"), "png", grey, optimize=True)
    keep("grey_table", Image.fromarray(GREYS, "L"), "png",
         profile(b"mntr", b"GRAY", b"XYZ ", 2, {b"kTRC": curve(TABLES[0])}), optimize=True)
    keep("grey_blocks", Image.fromarray(BLOCKS[..., 0], "L"), "jpg", grey, quality=100)
    keep("grey_rgb", Image.fromarray(BLOCKS[..., 0], "L"), "jpg", matrix(ADOBE, [1.8] * 3), quality=100)
    # The planes of an image are correlated, and JPEG's YCCK cannot hold all inks.
    cmyk = lut(b"CMYK", 4, 5, 8, "mft1")
    keep("cmyk", Image.fromarray(INKS, "CMYK"), "jpg", cmyk, quality=100)
    keep("cmyk16", Image.fromarray(INKS, "CMYK"), "jpg", lut(b"CMYK", 4, 5, 8, "mft2"), quality=100)
    c, m, y, k = (INKS[..., i] // 2 + 64.0 for i in range(4))
    luma = 0.299 * c + 0.587 * m + 0.114 * y
    planes = [255 - luma, 127 - (y - luma) * 0.564, 127 - (c - luma) * 0.713, k]
    planes = np.stack(planes, axis=-1).round().clip(0, 255).astype(np.uint8)
    path = HERE / "ycck.jpg"
    Image.fromarray(planes, "CMYK").save(path, quality=100, icc_profile=cmyk)
    ycck(path)
    with Image.open(path) as stored:
        converted(stored).save(path.with_suffix(".rgb.png"), optimize=True)


main()
