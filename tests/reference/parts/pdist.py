"""pdist.safetensors: perceptual distances by cosines of VGG16's features, by torch.

Source: CompVis/latent-diffusion ldm/modules/evaluate/evaluate_perceptualsim.py, `normalize_tensor`, `cos_sim`, `vgg16`
and `PNet.forward`; torchvision's VGG16 for the layers, whose weights here are synthetic, by their names there.

`vgg16.{cosine,cosine_f16}`: of the three pairs of metrics.py, with weights in f32, and rounded to f16.
`vgg16.squares`: the sums of squared differences of the same unit vectors.
"""

import torch
from torch.nn.functional import conv2d, max_pool2d

import fixture_io
import synthetic
from parts.drawn import drawn

# Of each convolution: its number in torchvision's `features`, and its channels.
BLOCKS = [
    [(0, 3, 64), (2, 64, 64)],
    [(5, 64, 128), (7, 128, 128)],
    [(10, 128, 256), (12, 256, 256), (14, 256, 256)],
    [(17, 256, 512), (19, 512, 512), (21, 512, 512)],
    [(24, 512, 512), (26, 512, 512), (28, 512, 512)],
]
# As in metrics.py: the images' size, and the seed of the weights.
SIDE, WEIGHTS_SEED, NOISE = (72, 56), 11, [4.0, 15.0, 60.0]


def vgg16(x, kind):
    """Returns relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
    outputs = []
    for number, block in enumerate(BLOCKS):
        if number > 0:
            x = max_pool2d(x, 2, 2)
        for index, inputs, channels in block:
            weight = synthetic.weight(f"features.{index}.weight", (channels, inputs, 3, 3), WEIGHTS_SEED)
            bias = synthetic.weight(f"features.{index}.bias", (channels,), WEIGHTS_SEED)
            x = conv2d(x, weight.to(kind).float(), bias.to(kind).float(), padding=1).relu()
        outputs.append(x)
    return outputs


def normalize_tensor(features, eps=1e-10):
    return features / (torch.sqrt(torch.sum(features**2, dim=1, keepdim=True)) + eps)


def units(x, kind=torch.float32):
    """Returns the unit vectors of each layer, of images in [-1, 1]."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    return [normalize_tensor(features) for features in vgg16((x - shift) / scale, kind)]


def cosine(a, b):
    """Computes `PNet.forward`: the sum over layers of 1 minus the mean cosine."""
    return sum(1.0 - (u * v).sum(1).double().mean((1, 2)) for u, v in zip(a, b))


@torch.no_grad()
def make():
    to_tensor = lambda name, noise: torch.from_numpy(drawn(name, *SIDE, noise)).permute(2, 0, 1).float() / 127.5 - 1
    a = torch.stack([to_tensor(f"pair{n}", 0.0) for n in range(len(NOISE))])
    b = torch.stack([to_tensor(f"pair{n}", noise) for n, noise in enumerate(NOISE)])
    wide, half = [(units(a, kind), units(b, kind)) for kind in (torch.float32, torch.float16)]
    squares = sum(((u - v) ** 2).sum(1).double().mean((1, 2)) for u, v in zip(*wide))
    tensors = {"vgg16.cosine": cosine(*wide), "vgg16.cosine_f16": cosine(*half), "vgg16.squares": squares}
    fixture_io.save("pdist", {name: value.float() for name, value in tensors.items()}, torch=torch.__version__)
