"""Models quantised by bitsandbytes as diffusers and transformers save and load them.

diffusers requires a GPU to quantise or load, although bitsandbytes also works on the CPU: only that check is skipped.
"""

import logging

import bitsandbytes
import diffusers
import safetensors.torch
import torch
import transformers
from bitsandbytes import functional
from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer

SETTINGS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def _allow_cpu():
    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):
        quantizer.validate_environment = lambda *_args, **_kwargs: None
    logging.getLogger(bitsandbytes.__name__).setLevel(logging.ERROR)


def _save(model_class, config_class, settings, source, folder, dtype):
    _allow_cpu()
    given = {"quantization_config": config_class(**SETTINGS[settings]), "device_map": {"": "cpu"}}
    given["dtype" if model_class is transformers.T5EncoderModel else "torch_dtype"] = dtype
    model_class.from_pretrained(source, **given).save_pretrained(folder)


def save_transformer(settings, source, folder, dtype=torch.float32):
    """Quantises the transformer in the folder `source` by one of SETTINGS and saves it."""
    _save(diffusers.FluxTransformer2DModel, diffusers.BitsAndBytesConfig, settings, source, folder, dtype)


def save_t5(settings, source, folder, dtype=torch.float32):
    """Quantises T5's encoder in the folder `source` by one of SETTINGS and saves it."""
    _save(transformers.T5EncoderModel, transformers.BitsAndBytesConfig, settings, source, folder, dtype)


def layer(settings, state):
    """Returns the state dict of one linear layer, `layer.weight` and `layer.bias`, quantised by one of SETTINGS."""
    given, (rows, columns) = SETTINGS[settings], state["layer.weight"].shape
    if "load_in_8bit" in given:
        module = bitsandbytes.nn.Linear8bitLt(columns, rows, has_fp16_weights=False)
    else:
        nested, kind = given.get("bnb_4bit_use_double_quant", False), given["bnb_4bit_quant_type"]
        module = bitsandbytes.nn.Linear4bit(columns, rows, compress_statistics=nested, quant_type=kind)
    module = torch.nn.ModuleDict({"layer": module.to(dtype=state["layer.weight"].dtype)})
    module.load_state_dict(state)
    return {name: tensor.contiguous() for name, tensor in module.to("cpu").state_dict().items()}


def dequantised(state):
    """Dequantises a saved state dict to f32, by bitsandbytes' own functions.

    For a 4-bit weight quantised from bf16, the products are taken before bitsandbytes rounds them to bf16.
    """
    out = {}
    for name, tensor in state.items():
        parts = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
        if parts:
            quant_state = functional.QuantState.from_dict(parts, device="cpu")
            quant_state.dtype = torch.float32
            out[name] = functional.dequantize_4bit(tensor, quant_state)
        elif tensor.dtype == torch.int8:
            out[name] = functional.int8_vectorwise_dequant(tensor, state[name.replace(".weight", ".SCB")])
        elif name.endswith((".weight", ".bias")):
            out[name] = tensor.float()
    return out


def _load(model_class, folder, dtype):
    _allow_cpu()
    given = {"device_map": {"": "cpu"}, "output_loading_info": True}
    given["dtype" if model_class is transformers.T5EncoderModel else "torch_dtype"] = dtype
    model, info = model_class.from_pretrained(folder, **given)
    if any(info.values()):
        raise ValueError(f"{folder}: {info}")
    return dequantised(model.state_dict())


def load_transformer(folder, dtype=torch.float32):
    """`dequantised` of the transformer that diffusers loads from a folder; every tensor must be used."""
    return _load(diffusers.FluxTransformer2DModel, folder, dtype)


def load_t5(folder, dtype=torch.float32):
    """`dequantised` of the encoder that transformers loads from a folder; every tensor must be used."""
    return _load(transformers.T5EncoderModel, folder, dtype)


def read(folder):
    """`dequantised` of all files of a folder."""
    state = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= safetensors.torch.load_file(path)
    return dequantised(state)
