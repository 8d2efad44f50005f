"""forms.safetensors: one linear layer in every storage form of other programs, as the files they write.

`FORM.file` holds the bytes of a GGUF or safetensors file with the tensor `layer.weight`, and in safetensors also the
`layer.bias`; ComfyUI's forms call the layer `double_blocks.0.img_attn.proj`. `FORM.weight` are the f32 values that the
writing program dequantises the weight to. Sources: the packages `gguf` and `bitsandbytes`, and ../comfy_fp8.py.
"""

import tempfile
from pathlib import Path

import safetensors.torch
import torch

import bnb_models
import comfy_fp8
import fixture_io
import gguf_files
import synthetic

SEED = 61
SHAPE = [8, 256]
NESTED = [72, 256]  # more than one block of nested absmax


def layer(shape):
    shapes = {"layer.weight": shape, "layer.bias": shape[:1]}
    return {name: synthetic.weight(name, size, SEED) for name, size in shapes.items()}


def as_bytes(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def gguf_file(kind):
    """Returns a file with one tensor of a type, and its values."""
    kind, weight = gguf_files.Type[kind], layer(SHAPE)["layer.weight"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.gguf"
        tensors = [("layer.weight", kind, SHAPE, lambda: gguf_files.stored("layer.weight", weight, kind))]
        gguf_files.write(path, "flux", lambda writer: gguf_files.add_flux_fields(writer, kind), tensors)
        return path.read_bytes(), gguf_files.read(path)


def bitsandbytes_file(settings, dtype=torch.float32):
    state = layer(NESTED if settings == "nf4-double" else SHAPE)
    state = bnb_models.layer(settings, {name: tensor.to(dtype) for name, tensor in state.items()})
    return safetensors.torch.save(state), bnb_models.dequantised(state)


def fp8_file(state, metadata=None):
    return safetensors.torch.save(state, metadata or None), comfy_fp8.dequantised(state)


def files():
    """Returns the bytes and the values of each form, by its name."""
    out = {f"gguf.{kind}": gguf_file(kind) for kind in gguf_files.TYPES}
    out |= {f"bnb.{settings}": bitsandbytes_file(settings) for settings in bnb_models.SETTINGS}
    out["bnb.nf4-bf16"] = bitsandbytes_file("nf4", torch.bfloat16)
    block = {name.replace("layer.", "double_blocks.0.img_attn.proj."): tensor for name, tensor in layer(SHAPE).items()}
    for name, dtype in comfy_fp8.FORMATS.items():
        out[f"{name}.plain"] = fp8_file(comfy_fp8.plain(block, dtype))
        out[f"{name}.scaled-old"] = fp8_file(comfy_fp8.scaled_old(block, dtype, torch.bfloat16))
        out[f"{name}.scaled-new"] = fp8_file(*comfy_fp8.scaled_new(block, name, torch.bfloat16))
    in_header = comfy_fp8.scaled_new(block, "float8_e4m3fn", torch.bfloat16, tensors=False)
    return out | {"float8_e4m3fn.scaled-header": fp8_file(*in_header)}


@torch.no_grad()
def make():
    tensors = {}
    for name, (data, values) in files().items():
        weight = next(tensor for key, tensor in values.items() if key.endswith(".weight"))
        tensors |= {f"{name}.file": as_bytes(data), f"{name}.weight": weight}
    fixture_io.save("forms", tensors, seed=SEED)
