"""quant.safetensors: packed blocks and their values by gguf-py, torch and bitsandbytes, packed rows, a GGUF file.

Source: gguf-py 0.19 `quants.py` and `gguf_writer.py`, torch 2.11, bitsandbytes 0.50 `functional.py`.

`FORMAT.packed` are random blocks with scales of a sane size, `FORMAT.values` their elements, `FORMAT.absmax` the
absmax of NF4 and FP4. `pack.values` [R, 64] is packed to `FORMAT.pack`; it includes rows of zeros, ties, and very
small and large values. For fp8, `FORMAT.bits` are the f32 of all 256 codes, `FORMAT.rounds` f32 at and next to the
midpoints of neighbours, and `FORMAT.rounded` their codes; floats that may be NaN or tiny are stored as integers.
`gguf` is a whole file with every type of metadata.
"""

import tempfile
from pathlib import Path

import bitsandbytes.functional
import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

import fixture_io

SEED = 23
# For each format: elements to dequantise, and the offsets of f16 scales in a block, with the scale's size.
ELEMENTS = 1024
FACTORS = {
    Type.F16: {0: 1.0}, Type.Q4_0: {0: 0.02}, Type.Q4_1: {0: 0.02, 2: 0.1}, Type.Q5_0: {0: 0.01}, Type.Q5_1: {0: 0.01, 2: 0.1},
    Type.Q8_0: {0: 0.001}, Type.Q2_K: {80: 0.01, 82: 0.01}, Type.Q3_K: {108: 0.01}, Type.Q4_K: {0: 0.001, 2: 0.001},
    Type.Q5_K: {0: 0.001, 2: 0.001}, Type.Q6_K: {208: 0.0001}, Type.IQ4_NL: {0: 0.001}, Type.IQ4_XS: {0: 0.0001},
}  # fmt: skip
PACKED = [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
FLOAT8 = {"F8_E4M3": (torch.float8_e4m3fn, 448.0), "F8_E5M2": (torch.float8_e5m2, None)}
COLUMNS, BLOCK = 64, 64


def u8(array):
    """Returns a numpy array's bytes."""
    return torch.from_numpy(np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8).copy())


def unpacked(random):
    """`FORMAT.packed` and `FORMAT.values` of the GGUF types."""
    out = {}
    for kind, factors in (FACTORS | {Type.BF16: {}, Type.F32: {}}).items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (ELEMENTS // block, size), dtype=np.uint8)
        for place, scale in factors.items():
            factor = (random.standard_normal(len(blocks)) * scale).astype(np.float16)
            factor[0] = 3e-7  # a subnormal one
            blocks[:, place : place + 2] = factor.view(np.uint8).reshape(-1, 2)
        if kind in (Type.BF16, Type.F32):
            blocks[:, -1] = blocks[:, -1] & 0x80 | 0x3C
        out[f"{kind.name}.packed"] = u8(blocks)
        values = gguf.dequantize(blocks.reshape(1, -1), kind)
        out[f"{kind.name}.values"] = torch.from_numpy(values.astype(np.float32).ravel().copy())
    return out


def to_pack(random):
    """Returns [R, COLUMNS], rows of different difficulty."""
    draw = lambda rows: random.standard_normal((rows, COLUMNS))  # noqa: E731
    rows = [draw(8), draw(2) * 1e-6, draw(2) * 1e-9, draw(2) * 300.0, np.zeros((1, COLUMNS)), np.ones((1, COLUMNS)) * -0.7]
    rows += [np.linspace(-8, 7.5, COLUMNS)[None], np.arange(COLUMNS)[None] / 2, np.sign(draw(1)), np.abs(draw(1)) + 3]
    rows += [np.round(draw(2) * 127) / 2, np.where(draw(1) > 1.5, 30.0, draw(1))]
    return np.concatenate(rows).astype(np.float32)


def packed(values):
    """`pack.values`, `FORMAT.pack`, and the absmax of each row."""
    out = {"pack.values": torch.from_numpy(values)}
    for kind in PACKED:
        out[f"{kind.name}.pack"] = u8(gguf.quantize(values, kind))
    codes, maxima, _ = bitsandbytes.functional.int8_vectorwise_quant(torch.from_numpy(values.copy()).clone())
    return out | {"INT8.pack": codes.view(torch.uint8).flatten(), "INT8.maxima": maxima}


def float8(random):
    """`FORMAT.bits`, `FORMAT.rounds` and `FORMAT.rounded` of fp8."""
    out = {}
    for name, (dtype, most) in FLOAT8.items():
        values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        out[f"{name}.bits"] = values.view(torch.int32)
        finite = values[:128][values[:128].isfinite()]
        middle = (finite[:-1].double() + finite[1:].double()).float() / 2
        sides = [middle, torch.nextafter(middle, torch.tensor(0.0)), torch.nextafter(middle, torch.tensor(1e9))]
        drawn = torch.from_numpy((random.standard_normal(64) * 10.0 ** random.uniform(-6, 5, 64)).astype(np.float32))
        rounds = torch.cat([*sides, -middle, drawn])
        out[f"{name}.rounds"] = rounds.view(torch.int32)
        clamped = rounds if most is None else rounds.clamp(-most, most)
        out[f"{name}.rounded"] = clamped.to(dtype).view(torch.uint8)
    return out


def four_bits(random):
    """NF4 and FP4, [R, 48] in blocks of 64, so that blocks cross the ends of rows."""
    out = {}
    for name in ("nf4", "fp4"):
        codes = torch.from_numpy(random.integers(0, 256, (ELEMENTS + 512) // 2, dtype=np.uint8))
        absmax = torch.from_numpy(np.abs(random.standard_normal((ELEMENTS + 512) // BLOCK)).astype(np.float32))
        table = bitsandbytes.functional.get_4bit_type(name, device="cpu")
        places = torch.stack([codes >> 4, codes & 15], 1).flatten().long()
        values = (table[places].view(-1, BLOCK) * absmax[:, None]).flatten()
        out |= {f"{name.upper()}.packed": codes, f"{name.upper()}.absmax": absmax, f"{name.upper()}.values": values}
    return out


def file(random):
    """`gguf`: a file as gguf-py writes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.gguf"
        writer = gguf.GGUFWriter(path, "flux")
        for bits in (8, 16, 32, 64):
            getattr(writer, f"add_uint{bits}")(f"test.u{bits}", 2**bits - 1)
            getattr(writer, f"add_int{bits}")(f"test.i{bits}", -(2 ** (bits - 1)))
        writer.add_float32("test.f32", 0.5)
        writer.add_float64("test.f64", 0.1)
        writer.add_bool("test.bool", True)
        writer.add_string("test.text", "Käse")
        writer.add_array("test.words", ["a", "", "word"])
        writer.add_array("test.shape", [3, -1, 2])
        weights = random.standard_normal((2, 3, 64)).astype(np.float32)
        writer.add_tensor("first.weight", gguf.quantize(weights, Type.Q8_0), raw_dtype=Type.Q8_0)
        writer.add_tensor("first.bias", weights[0, 0, :5].copy())
        writer.add_tensor("second.weight", weights[0].astype(np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return {"gguf": u8(np.frombuffer(path.read_bytes(), dtype=np.uint8)), "gguf.weights": torch.from_numpy(weights)}


def make():
    random = np.random.default_rng(SEED)
    tensors = unpacked(random) | packed(to_pack(random)) | float8(random) | four_bits(random) | file(random)
    fixture_io.save("quant", tensors, columns=COLUMNS, block=BLOCK, torch=torch.__version__)
