"""Makes the pictures of unusual kinds, and beside each what Pillow makes of it.

`NAME.KIND` is the picture, `NAME.rgb.png` its 8-bit RGB by Pillow: turned by `ImageOps.exif_transpose`, transparent
parts laid on white, converted by `Image.convert("RGB")`. Run `python make.py` in this folder with Pillow 13.0 and numpy.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
SIZE = (24, 16)
x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))


def planes(*values):
    return np.stack([np.broadcast_to(v, SIZE[::-1]) for v in values], axis=-1).round().clip(0, 255).astype(np.uint8)


# Smooth, so that JPEG keeps it, and of another look when mirrored or turned in any way.
RGB = planes(x * 10, y * 15, 255 - x * 5 - y * 5)
CMYK = planes(x * 8, y * 12, 200 - x * 5 - y * 3, (x + y) * 4)


def flattened(picture):
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("LA", "RGBA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def keep(name, picture, kind, **options):
    path = HERE / f"{name}.{kind}"
    picture.save(path, **options)
    keep_flattened(path)


def keep_flattened(path):
    with Image.open(path) as stored:
        flattened(stored).save(path.with_suffix(".rgb.png"), optimize=True)


def ycck():
    """As Photoshop writes: C, M, Y turned to Y, Cb, Cr as if they were R, G, B, and K inverted. Pillow writes plain CMYK
    alone (all planes inverted), so the planes are turned here and the marker that tells of it is set afterwards."""
    c, m, yellow, k = (CMYK[..., i].astype(float) for i in range(4))
    luma = 0.299 * c + 0.587 * m + 0.114 * yellow
    blue, red = 128 + (yellow - luma) * 0.564, 128 + (c - luma) * 0.713
    stored = planes(255 - luma, 255 - blue, 255 - red, k)
    path = HERE / "ycck.jpg"
    Image.fromarray(stored, "CMYK").save(path, quality=95)
    data = bytearray(path.read_bytes())
    data[data.index(b"Adobe") + 11] = 2
    path.write_bytes(data)
    keep_flattened(path)


def main():
    keep("cmyk", Image.fromarray(CMYK, "CMYK"), "jpg", quality=95)
    ycck()
    keep("grey", Image.fromarray(RGB[..., 0], "L"), "jpg", quality=95)
    keep("progressive", Image.fromarray(RGB, "RGB"), "jpg", quality=95, progressive=True)
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        keep(f"turned{orientation}", Image.fromarray(RGB, "RGB"), "jpg", quality=95, subsampling=0, exif=exif)
    palette = Image.fromarray(RGB, "RGB").quantize(13)
    keep("palette", palette, "png", optimize=True)
    keep("palette_transparent", palette, "png", optimize=True, transparency=bytes(range(0, 260, 20)))
    keep("bits", Image.fromarray((RGB[..., 0] > 100).astype(np.uint8) * 255, "L").convert("1"), "png", optimize=True)
    keep("grey_alpha", Image.fromarray(planes(x * 10, y * 16), "LA"), "png", optimize=True)
    rgba = planes(x * 10, y * 15, 255 - x * 5 - y * 5, x * 11)
    keep("rgba", Image.fromarray(rgba, "RGBA"), "png", optimize=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    keep("rgba_turned", Image.fromarray(rgba, "RGBA"), "webp", lossless=True, exact=True, exif=exif)
    # Sides that are no multiples of a block, chroma of half the size, and scans of every kind.
    across, down = np.meshgrid(np.arange(53), np.arange(37))
    odd = np.stack([across * 4, down * 6, 120 + 100 * np.sin(across / 5) * np.cos(down / 4)], axis=-1)
    odd = Image.fromarray(odd.round().astype(np.uint8), "RGB")
    keep("odd", odd, "jpg", quality=90, subsampling=2)
    keep("odd_restart", odd, "jpg", quality=90, subsampling=2, restart_marker_blocks=3)
    keep("odd_progressive", odd, "jpg", quality=90, subsampling=1, progressive=True)
    keep("odd_grey_progressive", odd.convert("L"), "jpg", quality=90, progressive=True)


main()
