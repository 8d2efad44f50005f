"""State dicts in 8-bit floats as ComfyUI stores them: plain, scaled in the old form and scaled in the new one.

Source: Comfy-Org/ComfyUI@311c014 QUANTIZATION.md, comfy/utils.py `convert_old_quants`, comfy/ops.py
`_load_quantized_module` and `_quantized_weight_state_dict`.
"""

import json
import re

import torch

FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
# The scaled linear layers: those of the blocks.
LINEAR = re.compile(
    r"(double|single)_blocks\..*(lin|qkv|proj|mlp\.\d|linear\d)\.weight"
    r"|.*SelfAttention\.[qkvo]\.weight|.*DenseReluDense\.w[io_01]+\.weight"
)


def plain(state, dtype):
    """Converts every tensor to the dtype, including biases and norms."""
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def scale_of(tensor, dtype):
    """Returns the scale of a tensor in f32, which maps its absmax to the largest value of the dtype."""
    return tensor.abs().max().float() / torch.finfo(dtype).max


def _layers(state):
    return [name.removesuffix(".weight") for name in state if LINEAR.fullmatch(name)]


def _scaled(state, dtype, others, weight_scale, input_scale):
    """Returns blocks' weights in `dtype` with their scales, other tensors in `others`; every third has an input scale."""
    out = {name: tensor.to(others) for name, tensor in state.items()}
    for i, layer in enumerate(_layers(state)):
        weight = state[f"{layer}.weight"]
        scale = scale_of(weight, dtype)
        out[f"{layer}.weight"] = (weight / scale).to(dtype)
        out[f"{layer}.{weight_scale}"] = scale
        if i % 3 == 0:
            out[f"{layer}.{input_scale}"] = torch.tensor(0.5 + 0.01 * i)
    return out


def scaled_old(state, dtype, others, marker=0):
    """Returns the old form: `scale_weight` and an (often empty) tensor `scaled_fp8` of `marker` values, in the weights' dtype."""
    return {"scaled_fp8": torch.zeros(marker).to(dtype)} | _scaled(state, dtype, others, "scale_weight", "scale_input")


def scaled_new(state, name, others, tensors=True):
    """Returns (state, metadata) of the new form: `weight_scale`, and the format in tensors `comfy_quant` or the header."""
    out, metadata = _scaled(state, FORMATS[name], others, "weight_scale", "input_scale"), {}
    layers = _layers(state)
    if tensors:
        conf = {"format": name, "full_precision_matrix_mult": True}
        text = torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)
        out |= {f"{layer}.comfy_quant": text.clone() for layer in layers}
    else:
        conf = {"format_version": "1.0", "layers": {layer: {"format": name} for layer in layers}}
        metadata["_quantization_metadata"] = json.dumps(conf)
    return out, metadata


def dequantised(state):
    """Dequantises a state dict of this module to f32."""
    out = {}
    for name, tensor in state.items():
        if name.endswith(("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant", "scaled_fp8")):
            continue
        layer = name.removesuffix(".weight")
        scale = state.get(f"{layer}.scale_weight", state.get(f"{layer}.weight_scale"))
        out[name] = tensor.float() if scale is None else tensor.float() * scale
    return out
