"""noise.safetensors: torch's CPU normal generator, and the rule for synthetic weights.

Source: torch 2.11 aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill from 16 values on, the serial
path with its cached second value below), core/DistributionsHelper.h.
"""

import math
import zlib

import torch

import fixture_io
import synthetic

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SIZES = [1, 2, 5, 15, 16, 17, 31, 33, 100, 1023]
WIDE_SEEDS = [2**32 - 1, 2**40 + 5]
SEQUENCE = [5, 3, 16, 1, 17, 2, 15]
LONG = 262144
SYNTHETIC = {"norm.weight": [17], "norm.scale": [5], "lin.bias": [33], "lin.weight": [4, 6], "conv.weight": [3, 2, 3, 3], "factor": []}


def randn(size, seed, dtype):
    """Returns one draw from a fresh generator."""
    return torch.randn(size, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)


def short_draws():
    """`DTYPE.seedS.nN`: a draw of N values."""
    plan = [(seed, size) for seed in (0, 7) for size in SIZES]
    plan += [(seed, size) for seed in WIDE_SEEDS for size in (1, 17, 33)]
    return {f"{d}.seed{s}.n{n}": randn(n, s, t) for d, t in DTYPES.items() for s, n in plan}


def sequences():
    """`sequence.DTYPE.I`: consecutive draws of SEQUENCE[I] values from one generator with seed 7."""
    out = {}
    for name, dtype in DTYPES.items():
        generator = torch.Generator("cpu").manual_seed(7)
        for i, size in enumerate(SEQUENCE):
            out[f"sequence.{name}.{i}"] = torch.randn(size, generator=generator, dtype=dtype)
    return out


def long_draw(name, dtype):
    """`long.DTYPE.*`: both ends, the exact sum and the CRC-32 of the little-endian bytes of a long draw, seed 7."""
    x = randn(LONG, 7, dtype)
    crc = zlib.crc32(x.view(torch.uint8).numpy().tobytes())
    return {
        f"long.{name}.first": x[:64],
        f"long.{name}.last": x[-64:],
        f"long.{name}.sum": torch.tensor([math.fsum(x.double().tolist())], dtype=torch.float64),
        f"long.{name}.crc32": torch.tensor([crc], dtype=torch.int64),
    }


def synthetic_weights():
    """`synthetic.seedS.NAME`: the rule of synthetic.py, S = 2**32 - 1 to show that the sum wraps."""
    return {
        f"synthetic.seed{seed}.{name}": synthetic.weight(name, shape, seed)
        for seed in (0, 2**32 - 1)
        for name, shape in SYNTHETIC.items()
    }


def make():
    tensors = short_draws() | sequences() | synthetic_weights()
    for name, dtype in DTYPES.items():
        tensors |= long_draw(name, dtype)
    fixture_io.save("noise", tensors, sequence=SEQUENCE, long=LONG, torch=torch.__version__)
