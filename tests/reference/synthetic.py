"""Weights and inputs generated from names instead of stored.

The rule, which `kontext_core::Weights::synthetic` repeats bit for bit: a tensor NAME of SHAPE under the base
seed S is drawn as float32 from torch's CPU generator seeded with `(crc32(NAME) + S) mod 2**32`, then scaled so
that a network of any depth keeps a sensible range and no norm or bias is trivial:

* 0-d                                   0.1 * z
* 1-d, NAME ends in "weight" or "scale" 1 + 0.1 * z   (the weight of a norm)
* 1-d, any other name                   0.1 * z       (a bias)
* 2-d and more                          z / sqrt(product(SHAPE[1:]))
"""

import math
import zlib

import torch


def draw(name, shape, seed=0):
    """Returns plain standard normal values for `name`: the rule for inputs, and the `z` of the rule for weights."""
    generator = torch.Generator("cpu").manual_seed((zlib.crc32(name.encode()) + seed) & 0xFFFFFFFF)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def weight(name, shape, seed=0):
    """Returns the synthetic weight called `name`, in float32."""
    z = draw(name, shape, seed)
    if z.ndim == 0:
        return 0.1 * z
    if z.ndim == 1:
        return 1 + 0.1 * z if name.endswith(("weight", "scale")) else 0.1 * z
    return z / math.sqrt(math.prod(z.shape[1:]))


@torch.no_grad()
def fill_(module, seed=0):
    """Overwrites every saved tensor of `module` and returns it, in eval mode.

    Tied tensors appear several times in a state dict; the first name decides, which for T5 is `shared.weight`.
    """
    filled = set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() in filled or not tensor.is_floating_point():
            continue
        filled.add(tensor.data_ptr())
        tensor.copy_(weight(name, tensor.shape, seed))
    return module.eval()
