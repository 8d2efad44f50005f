"""Black Forest Labs' own code, imported from a checkout outside this repository.

    git clone https://github.com/black-forest-labs/flux && git -C flux checkout 802fb47
    export BFL_FLUX=$PWD/flux        # einops is needed besides requirements.txt

Their command line's parser, content filter, watermark and the encoders of their other models are replaced by no-op
stubs, since their packages or weights are large. Of these only the watermark changes the image.
"""

import contextlib
import importlib
import io
import os
import sys
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import torch

STAND_INS = ["fire", "imwatermark", "flux.content_filters", "flux.modules.image_embedders"]


def module(name):
    """Imports their module `flux.NAME`."""
    folder = os.environ.get("BFL_FLUX")
    if not folder or not (Path(folder) / "src" / "flux" / "sampling.py").is_file():
        raise SystemExit("BFL_FLUX does not name a checkout of black-forest-labs/flux")
    source = str(Path(folder).resolve() / "src")
    if source not in sys.path:
        sys.path.insert(0, source)
        sys.modules.update({name: MagicMock() for name in STAND_INS})
    # Importing flux.util creates a folder in the working directory.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        return importlib.import_module(f"flux.{name}")


class _WithoutBfloat16:
    """torch with bf16 replaced by f32: their code hard-codes its only dtype."""

    bfloat16 = torch.float32

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def in_f32():
    """Runs their sampling code in f32 instead of bf16."""
    sampling = module("sampling")
    sampling.torch = _WithoutBfloat16()
    try:
        yield
    finally:
        sampling.torch = torch


def levels(picture):
    """Converts values [1, 3, H, W] as their `save_image` does, before JPEG: a PIL image without the watermark."""
    from PIL import Image

    util = module("util")
    util.embed_watermark = lambda x: x
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        util.save_image(None, "flux-dev-kontext", f"{folder}/{{idx}}.png", 0, picture, False, "")
        return Image.open(f"{folder}/0.png").convert("RGB")
