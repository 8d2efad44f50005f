"""resize.safetensors: Pillow's 8-bit LANCZOS, which fits the reference image to its bucket.

Source: Pillow 13.0 src/libImaging/Resample.c (a=3, horizontal pass first, 22-bit fixed-point coefficients).
"""

import numpy as np
import PIL
import torch
from PIL import Image

import fixture_io

# name: content, (width, height) before, (width, height) after
CASES = {
    "down": ("mixed", (64, 48), (32, 16)),
    "up": ("mixed", (10, 7), (48, 32)),
    "wider_and_lower": ("mixed", (40, 50), (64, 16)),
    "narrower_and_higher": ("mixed", (50, 12), (16, 48)),
    "odd": ("mixed", (37, 23), (19, 41)),
    "slight": ("mixed", (31, 33), (32, 32)),
    "point": ("random", (1, 1), (16, 16)),
    "ribbon": ("mixed", (300, 2), (16, 48)),
    "column": ("mixed", (2, 150), (32, 16)),
    "same": ("random", (24, 16), (24, 16)),
    "width_only": ("random", (33, 16), (16, 16)),
    "height_only": ("random", (16, 9), (16, 32)),
    "extreme": ("edges", (257, 3), (16, 16)),
    "overshoot_up": ("edges", (12, 12), (48, 32)),
    "overshoot_down": ("edges", (60, 60), (16, 32)),
}

# The same with the box (left, top, right, bottom) that is resized.
BOXES = {
    "box_of_the_same_size": ("mixed", (40, 30), (40, 30), (0.75, 0.5, 39.25, 29.75)),
    "box_moved_across": ("edges", (40, 30), (39, 30), (0.3, 0.0, 39.3, 30.0)),
    "box_moved_down": ("random", (24, 33), (24, 32), (0.0, 0.9, 24.0, 32.9)),
    "box_up": ("mixed", (31, 22), (64, 48), (3.1, 2.7, 28.4, 19.9)),
    "box_down": ("random", (90, 70), (32, 24), (10.123, 5.987, 83.3, 66.6)),
    "box_height_first": ("random", (50, 90), (40, 24), (1.5, 3.25, 47.125, 88.8)),
    "box_within_a_pixel": ("random", (9, 9), (16, 16), (3.2, 4.1, 3.9, 4.7)),
    "box_of_whole_pixels": ("random", (32, 24), (16, 8), (4, 5, 20, 13)),
    "box_at_the_edges": ("edges", (37, 29), (48, 40), (0.0, 1.0 / 3.0, 36.9, 29.0)),
}


def picture(content, width, height, seed):
    """Draws a deterministic RGB image, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if content == "random":
        return noise
    if content == "edges":
        return np.where(noise > 127, 255, 0).astype(np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), 127.5 + 127 * np.sin(x * 0.3 + y * 0.2)], -1)
    return np.clip(smooth + (noise.astype(np.float64) - 128) * 0.25, 0, 255).round().astype(np.uint8)


def make():
    tensors = {}
    for seed, (name, (content, before, after)) in enumerate(CASES.items()):
        pixels = picture(content, *before, seed)
        resized = Image.fromarray(pixels).resize(after, Image.Resampling.LANCZOS)
        tensors[f"{name}.input"] = torch.from_numpy(pixels)
        tensors[f"{name}.output"] = torch.from_numpy(np.array(resized))
    for seed, (name, (content, before, after, box)) in enumerate(BOXES.items(), len(CASES)):
        pixels = picture(content, *before, seed)
        resized = Image.fromarray(pixels).resize(after, Image.Resampling.LANCZOS, box=box)
        tensors[f"{name}.input"] = torch.from_numpy(pixels)
        tensors[f"{name}.output"] = torch.from_numpy(np.array(resized))
        tensors[f"{name}.box"] = torch.tensor(box, dtype=torch.float64)
    fixture_io.save("resize", tensors, cases=[*CASES, *BOXES], pillow=PIL.__version__)
