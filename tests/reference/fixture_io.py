"""Writing and checking of one fixture file."""

import json
from pathlib import Path

import safetensors.torch
import torch

FOLDER = Path(__file__).resolve().parent


def save(name, tensors, **metadata):
    """Writes `NAME.safetensors`; every metadata value is stored as JSON text.

    Raises ValueError for a value that is not finite, or for a float tensor of more than eight values that are
    the same relative to their size: either would make a test against it worthless. Position ids may
    be all zero.
    """
    for key, tensor in tensors.items():
        _check(f"{name}: {key}", tensor)
    text = {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}
    tensors = {key: tensor.detach().contiguous().clone() for key, tensor in sorted(tensors.items())}
    data = safetensors.torch.save(tensors, metadata=text)
    (FOLDER / f"{name}.safetensors").write_bytes(_with_sorted_metadata(data))


def _check(label, tensor):
    if not tensor.is_floating_point() or label.endswith("ids"):
        return
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{label} is not finite")
    if tensor.numel() > 8 and tensor.double().std() <= 1e-3 * tensor.abs().max():
        raise ValueError(f"{label} is degenerate")


def _with_sorted_metadata(data):
    """Sorts the metadata of a file: safetensors writes it in a new order at each run."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
