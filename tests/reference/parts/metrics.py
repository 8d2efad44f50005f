"""metrics.safetensors: metrics of pairs of small 8-bit images, by scikit-image, scipy, pytorch-msssim and lpips.

Source: scikit-image 0.26 metrics/simple_metrics.py, metrics/_structural_similarity.py, color/delta_e.py; scipy 1.17
ndimage (`laplace`, `gaussian_filter`) and stats (`bootstrap`); pytorch-msssim 1.0.0; lpips 0.1.4 on torchvision 0.26.
"""

from pathlib import Path

import lpips
import numpy as np
import scipy
import skimage
import torch
from pytorch_msssim import ms_ssim
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter, laplace, maximum_filter
from skimage.color import deltaE_ciede2000, rgb2gray, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import fixture_io
import synthetic
from parts.drawn import drawn
from parts.resize import picture

# name: (width, height), contents of the two images, standard deviation in levels of the noise on the second
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
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
# Images drawn on both sides instead of stored: width, height. Sides that halve evenly, and odd ones.
SCALES = {"even": (192, 176), "odd": (181, 163), "odd_at_last": (168, 210)}
# Side of the images for feature distances, and the seed of the networks' weights.
NETWORKS, SIDE, WEIGHTS_SEED = {"alexnet": "alex", "vgg16": "vgg", "squeezenet1.1": "squeeze"}, (72, 56), 11
CAFFE = Path(__file__).resolve().parents[3] / "../shared/assets/networks/squeezenet_v1.1_caffe_oihw_f32.safetensors"
# Edits of `drawn` images: the painted box as (left, top, right, bottom), and the noise added, in levels.
EDIT, THRESHOLD = ((20, 12, 47, 30), 5.0), 16.0


def pair(size, contents, added, seed):
    """Returns two images, uint8 [height, width, 3]; unless noise is added, the second is drawn from another seed."""
    first = picture(contents[0], *size, seed)
    if contents[1] == "inverted":
        return first, 255 - first
    if added is None:
        return first, picture(contents[1], *size, seed + 100)
    noise = np.random.default_rng(seed).normal(0, added, first.shape)
    return first, np.clip(first + noise, 0, 255).round().astype(np.uint8)


def scalar(value):
    return torch.tensor(float(value), dtype=torch.float64)


def small():
    """`CASE.{a,b}`: the images; `CASE.{psnr,ssim,ssim_grey,delta_e,sharpness}`: float64 scalars, the last of a."""
    tensors = {}
    for seed, (name, (size, contents, added)) in enumerate(CASES.items()):
        a, b = pair(size, contents, added, seed)
        tensors[f"{name}.a"], tensors[f"{name}.b"] = torch.from_numpy(a), torch.from_numpy(b)
        grey = structural_similarity(rgb2gray(a), rgb2gray(b), data_range=1, **SSIM)
        values = {
            "psnr": peak_signal_noise_ratio(a, b),
            "ssim": structural_similarity(a, b, channel_axis=2, data_range=255, **SSIM),
            "ssim_grey": grey,
            "delta_e": deltaE_ciede2000(rgb2lab(a), rgb2lab(b)).mean(),
            "sharpness": laplace(255 * rgb2gray(a), mode="mirror").var(),
        }
        tensors |= {f"{name}.{metric}": scalar(value) for metric, value in values.items()}
        if name == "noisy":
            tensors[f"{name}.delta_e_map"] = torch.from_numpy(deltaE_ciede2000(rgb2lab(a), rgb2lab(b)))[:4]
    return tensors


def scales():
    """`ms_ssim.NAME`: of `drawn(NAME)` without noise and with 20 levels of it."""
    to_tensor = lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    of = lambda name, size, noise: to_tensor(drawn(name, *size, noise))
    return {
        f"ms_ssim.{name}": ms_ssim(of(name, size, 0.0), of(name, size, 20.0), data_range=255)[None].squeeze()
        for name, size in SCALES.items()
    }


def features_of(net):
    """Sets synthetic weights, by their names in torchvision."""
    state = net.state_dict()
    renamed = {name: "features." + name.split(".", 1)[1] for name in state}
    net.load_state_dict({name: synthetic.weight(renamed[name], value.shape, WEIGHTS_SEED) for name, value in state.items()})


@torch.no_grad()
def perceptual():
    """`NETWORK.pdist`, `NETWORK.lpips`: of three pairs; `NETWORK.pooled`: the first image's last features."""
    pairs = [(drawn(f"pair{n}", *SIDE), drawn(f"pair{n}", *SIDE, noise)) for n, noise in enumerate([4.0, 15.0, 60.0])]
    to_tensor = lambda pictures: torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    a, b = (to_tensor(side) for side in zip(*pairs))
    tensors = {}
    for name, net in NETWORKS.items():
        plain = lpips.LPIPS(net=net, pnet_rand=True, lpips=False, verbose=False)
        features_of(plain.net)
        weighted = lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False)
        features_of(weighted.net)
        for number, head in enumerate(weighted.lins):
            # Heads have no negative weights.
            head.model[1].weight.copy_(synthetic.weight(f"lin{number}.model.1.weight", head.model[1].weight.shape).abs())
        tensors[f"{name}.pdist"], tensors[f"{name}.lpips"] = plain(a, b).flatten(), weighted(a, b).flatten()
        last = plain.net(plain.scaling_layer(a[:1]))[-1]
        tensors[f"{name}.pooled"] = last.mean((2, 3)).flatten()[:64]
    if CAFFE.is_file():
        tensors["caffe.pdist"] = caffe(a, b)
    return tensors


def caffe(a, b):
    """Computes the unweighted distance with Caffe's SqueezeNet 1.1 and its colours."""
    plain = lpips.LPIPS(net="squeeze", pnet_rand=True, lpips=False, verbose=False)
    weights, modules = load_file(CAFFE), {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}
    theirs = {"0.weight": "conv1.weight", "0.bias": "conv1.bias"}
    for fire, index in modules.items():
        for part, name in [("squeeze", "squeeze1x1"), ("expand1x1", "expand1x1"), ("expand3x3", "expand3x3")]:
            for kind in ["weight", "bias"]:
                theirs[f"{index}.{part}.{kind}"] = f"fire{fire}.{name}.{kind}"
    plain.net.load_state_dict({name: weights[theirs[name.split(".", 1)[1]]] for name in plain.net.state_dict()})
    means = torch.tensor([103.939, 116.779, 123.68])[None, :, None, None]
    plain.scaling_layer.forward = lambda x: ((x + 1) * 127.5).flip(1) - means
    return plain(a, b).flatten()


def change():
    """`change.{share,mean_difference,psnr,ssim}` of an image with a part painted over and noise elsewhere."""
    (left, top, right, bottom), noise = EDIT
    source, result = drawn("edit", *SIDE), drawn("edit", *SIDE, noise)
    result[top:bottom, left:right] = [200, 30, 60]
    difference = result.astype(np.float64) - source
    smoothed = np.stack([gaussian_filter(difference[..., c], 1.5, truncate=3.5) for c in range(3)], -1)
    changed = np.abs(smoothed).max(-1) > THRESHOLD
    _, similarity = structural_similarity(source, result, channel_axis=2, full=True, data_range=255, **SSIM)
    untouched = ~maximum_filter(changed, 11)[5:-5, 5:-5]
    assert 0.1 < untouched.mean() < 0.9
    values = {
        "share": changed.mean(),
        "mean_difference": np.abs(difference).mean(),
        "psnr": 10 * np.log10(255**2 / (difference[~changed] ** 2).mean()),
        "ssim": similarity[5:-5, 5:-5][untouched].mean(),
    }
    return {f"change.{name}": scalar(value) for name, value in values.items()}


def statistics():
    """`bootstrap.values`, and `bootstrap.bounds` of their mean with confidence 0.9, from 200,000 resamples."""
    values = synthetic.draw("bootstrap", (60,)).double().exp()
    found = scipy.stats.bootstrap(
        (values.numpy(),), np.mean, confidence_level=0.9, n_resamples=200_000, method="percentile", batch=10_000, rng=0
    )
    bounds = torch.tensor([found.confidence_interval.low, found.confidence_interval.high], dtype=torch.float64)
    return {"bootstrap.values": values, "bootstrap.bounds": bounds, "bootstrap.error": scalar(scipy.stats.sem(values))}


def make():
    tensors = small() | scales() | perceptual() | change() | statistics()
    versions = {"scikit_image": skimage.__version__, "scipy": scipy.__version__}
    fixture_io.save("metrics", tensors, cases=list(CASES), ssim=SSIM, **versions)
