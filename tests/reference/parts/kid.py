"""kid.safetensors: kernel distances of sets of vectors by numpy in float64.

Source: Bińkowski et al., "Demystifying MMD GANs" (2018), the kernel of section 4.2; mbinkowski/MMD-GAN
gan/compute_scores.py, `_mmd2_and_variance` with `mmd_est` of 'unbiased' and 'u-statistic'.

`SET.{unbiased,paired}`: float64 scalars, of sets that both sides draw: `SET.a` and `SET.b`, normal values of the
shapes in SETS, times a scale, the second shifted.
"""

import numpy as np
import torch

import fixture_io
import synthetic

# name: (vectors of a, vectors of b, length, scale, shift)
SETS = {
    "same": (40, 40, 12, 1.0, 0.0),
    "shifted": (40, 40, 12, 1.0, 0.4),
    "unequal": (25, 60, 7, 0.5, 1.0),
    "long": (16, 16, 512, 2.0, 0.05),
}


def kernel(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3


def unbiased(a, b):
    """Computes MMD² of independent sets: `(sum K_XX - trace) / (m (m - 1)) + … - 2 mean K_XY`."""
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return within(kernel(a, a)) + within(kernel(b, b)) - 2 * kernel(a, b).mean()


def paired(a, b):
    """Computes the u-statistic: pairs of one index are left out of K_XY, too."""
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return within(kernel(a, a)) + within(kernel(b, b)) - 2 * within(kernel(a, b))


def make():
    tensors = {}
    for name, (count_a, count_b, length, scale, shift) in SETS.items():
        a, b = synthetic.draw(f"{name}.a", (count_a, length)), synthetic.draw(f"{name}.b", (count_b, length))
        a, b = (a * scale).numpy().astype(np.float64), (b * scale + shift).numpy().astype(np.float64)
        tensors[f"{name}.unbiased"] = torch.tensor(unbiased(a, b), dtype=torch.float64)
        if count_a == count_b:
            tensors[f"{name}.paired"] = torch.tensor(paired(a, b), dtype=torch.float64)
    fixture_io.save("kid", tensors, sets=SETS)
