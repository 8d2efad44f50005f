"""geometry.json: the sizes FluxKontextPipeline works at, found by running its own `__call__` up to the latents.

Source: diffusers 0.38 pipelines/flux/pipeline_flux_kontext.py, image_processor.py.
"""

import json
from types import SimpleNamespace

import diffusers
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

import fixture_io

IMAGES = [
    (1024, 1024), (512, 512), (256, 256), (16, 16), (31, 31), (32, 16), (16, 32), (640, 480), (480, 640), (1920, 1080),
    (1080, 1920), (1280, 720), (800, 600), (768, 512), (512, 768), (1000, 1000), (1001, 999), (999, 1001), (300, 200), (200, 300),
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104), (1104, 944), (1184, 880),
    (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672), (2000, 500), (500, 2000), (97, 101), (101, 97),
    (1023, 769), (769, 1023), (451, 300), (300, 451), (1119, 1056), (1056, 1119), (160, 90), (75, 131), (4000, 3000), (17, 1000),
]  # fmt: skip
# (height, width, max_area), None for the pipeline's default
TARGETS = [
    (None, None, None), (1024, 1024, None), (752, 1392, None), (1392, 752, None), (1568, 672, None), (1552, 656, None), (1328, 800, None),
    (672, 1568, None), (800, 1328, None), (512, 512, None), (480, 640, None), (1080, 1920, None), (1000, 1000, None), (100, 300, None),
    (None, 512, None), (512, None, None), (512, 512, 512 * 512), (1024, 1024, 512 * 512), (752, 1392, 16384), (1328, 752, 16384),
    (128, 192, 24576), (768, 1024, 786432), (1024, 1024, 2048 * 2048), (1080, 1920, 2073600), (333, 777, 100000), (1, 1, 256),
    (16, 4096, 65536), (2048, 2048, None), (30, 7, 65536), (1184, 880, 1041920), (944, 1104, 1042176), (1344, 768, 1032192),
]  # fmt: skip


class Reached(Exception):
    """Ends the pipeline's run at `prepare_latents`."""


def pipeline(seen):
    """A pipeline without models that records its sizes in `seen`."""
    pipe = FluxKontextPipeline(*[None] * 7)
    pipe.transformer = SimpleNamespace(config=SimpleNamespace(in_channels=64))
    pipe.encode_prompt = lambda **_: (torch.zeros(1, 1, 1), torch.zeros(1, 1), torch.zeros(1, 3))

    def prepare_latents(image, _batch, _channels, height, width, *_):
        seen.update(reference=None if image is None else [image.shape[3], image.shape[2]], output=[width, height])
        raise Reached

    pipe.prepare_latents = prepare_latents
    return pipe


def measure(image, height, width, max_area):
    """Returns one row of the table; `[W, H]` for images, `[rows, columns]` for token grids, 16 pixels a token."""
    seen = {}
    given = {"height": height, "width": width} | ({} if max_area is None else {"max_area": max_area})
    picture = None if image is None else Image.new("RGB", image)
    try:
        pipeline(seen)(image=picture, prompt="", **given)
    except Reached:
        pass
    grid = lambda size: None if size is None else [size[1] // 16, size[0] // 16]  # noqa: E731
    row = {"image": image, "height": height, "width": width, "max_area": max_area}
    return row | seen | {"reference_grid": grid(seen["reference"]), "output_grid": grid(seen["output"])}


def make():
    diffusers.utils.logging.set_verbosity_error()
    rows = [measure(image, None, None, None) for image in IMAGES]
    rows += [measure(None, *target) for target in TARGETS]
    rows += [measure((640, 427), *target) for target in TARGETS[:6]]
    lines = ",\n".join(json.dumps(row) for row in rows)
    (fixture_io.FOLDER / "geometry.json").write_text(f"[\n{lines}\n]\n")
