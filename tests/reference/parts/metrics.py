"""metrics.safetensors: PSNR and SSIM of pairs of small 8-bit pictures, by scikit-image.

Source: scikit-image 0.26 metrics/simple_metrics.py, metrics/_structural_similarity.py.
"""

import numpy as np
import skimage
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import fixture_io
from parts.resize import picture

# name: (width, height), contents of the two pictures, standard deviation in levels of what is added to the second
CASES = {
    "noisy": ((48, 32), ("mixed", "mixed"), 12.0),
    "slight": ((37, 23), ("mixed", "mixed"), 1.0),
    "unrelated": ((23, 40), ("random", "random"), None),
    "structure_lost": ((40, 19), ("mixed", "edges"), None),
    "one_window": ((11, 11), ("mixed", "mixed"), 30.0),
    "one_row": ((64, 11), ("edges", "edges"), 60.0),
    "one_column": ((11, 45), ("random", "random"), 25.0),
    "negative": ((32, 24), ("mixed", "inverted"), None),
}
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


def pair(size, contents, added, seed):
    """Two pictures, uint8 [height, width, 3]; unless noise is added, the second is drawn from another seed."""
    first = picture(contents[0], *size, seed)
    if contents[1] == "inverted":
        return first, 255 - first
    if added is None:
        return first, picture(contents[1], *size, seed + 100)
    noise = np.random.default_rng(seed).normal(0, added, first.shape)
    return first, np.clip(first + noise, 0, 255).round().astype(np.uint8)


def make():
    """`CASE.{a,b}`: the pictures; `CASE.psnr`, `CASE.ssim`: float64 scalars."""
    tensors = {}
    for seed, (name, (size, contents, added)) in enumerate(CASES.items()):
        a, b = pair(size, contents, added, seed)
        tensors[f"{name}.a"], tensors[f"{name}.b"] = torch.from_numpy(a), torch.from_numpy(b)
        tensors[f"{name}.psnr"] = torch.tensor(peak_signal_noise_ratio(a, b), dtype=torch.float64)
        tensors[f"{name}.ssim"] = torch.tensor(structural_similarity(a, b, channel_axis=2, **SSIM), dtype=torch.float64)
    fixture_io.save("metrics", tensors, cases=list(CASES), ssim=SSIM, scikit_image=skimage.__version__)
