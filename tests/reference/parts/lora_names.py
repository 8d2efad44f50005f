"""lora_names.safetensors: fused weights by numpy, for the LoRA files of lora.safetensors and for other names of them.

`fused.LAYER` is `W + alpha / rank * up @ down` of BFL's layer LAYER in float64, rounded to float32. W is the tiny model's
(lora.py), up and down are the factors of its FAMILIES.
"""

import numpy as np
import torch

import fixture_io
from parts import lora

LAYERS = ["double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.proj", "single_blocks.1.linear1", "final_layer.adaLN_modulation.1", "img_in"]


@torch.no_grad()
def make():
    weights = {name: tensor.double().numpy() for name, tensor in lora.transformer().state_dict().items()}
    factors = {name: (down.double().numpy(), up.double().numpy()) for name, (down, up) in lora.factors().items()}
    fused = {}
    for layer in LAYERS:
        weight = np.concatenate([weights[f"{module}.weight"] for module in lora.layers()[layer][0]])
        if layer == "final_layer.adaLN_modulation.1":
            # BFL has the shift first.
            weight = np.concatenate(np.split(weight, 2)[::-1])
        down, up = factors[layer]
        change = lora.ALPHA / lora.RANK * (up @ down)
        if np.linalg.norm(change) < 0.1 * np.linalg.norm(weight):
            raise ValueError(f"{layer}: the LoRA hardly changes the weight")
        fused[f"fused.{layer}"] = torch.from_numpy((weight + change).astype(np.float32))
    fixture_io.save("lora_names", fused, seed=lora.SEED)
