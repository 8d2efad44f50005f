"""edited.safetensors: edited tokens by NumPy in float64: cosine, erosion and dilation as in RegionE's `token_selector`.

Source: Peyton-Chen/RegionE@974da98 src/FluxKontext/utils.py.
"""

import numpy as np
import torch

import fixture_io
import synthetic

GRID, CHANNELS, THRESHOLD = (9, 11), 4, 0.93
# name: size of the batch, places (row, column, height, width) of edits of each item
CASES = {"one": [[(1, 2, 4, 5), (7, 9, 1, 1)]], "batch": [[(0, 0, 3, 3)], [(5, 6, 4, 5), (0, 10, 9, 1)]]}


def shifted(mask, offsets):
    """Returns copies of the mask moved by offsets, with nothing set outside."""
    padded = np.pad(mask, 2)
    return [padded[2 + down : 2 + down + GRID[0], 2 + right : 2 + right + GRID[1]] for down, right in offsets]


def rows(estimate, reference):
    """Returns the edited rows of all items together."""
    a, b = (x.double().numpy() for x in (estimate, reference))
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    assert np.abs(cosine - THRESHOLD).min() > 1e-4
    cross = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    square = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    masks = [np.all(shifted(item.reshape(GRID) <= THRESHOLD, cross), axis=0) for item in cosine]
    masks = [np.any(shifted(mask, square), axis=0) for mask in masks]
    return np.flatnonzero(np.logical_or.reduce(masks).ravel())


def make():
    tensors = {}
    for name, edits in CASES.items():
        shape = [len(edits), GRID[0] * GRID[1], CHANNELS]
        reference = synthetic.draw(f"edited.{name}.reference", [1, *shape[1:]])
        estimate = reference + 0.1 * synthetic.draw(f"edited.{name}.noise", shape)
        for item, places in zip(estimate.unflatten(1, GRID), edits, strict=True):
            for row, column, height, width in places:
                item[row : row + height, column : column + width] *= -1
        found = torch.from_numpy(rows(estimate, reference))
        tensors |= {f"{name}.reference": reference, f"{name}.estimate": estimate, f"{name}.rows": found}
    fixture_io.save("edited", tensors, grid=GRID, threshold=THRESHOLD, cases=CASES)
