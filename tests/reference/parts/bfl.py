"""bfl.safetensors: results of Black Forest Labs' own functions, stage by stage; only made if named.

    BFL_FLUX=path/to/their/checkout python make_fixtures.py bfl

Source: black-forest-labs/flux@802fb47 src/flux/sampling.py (get_noise, prepare, prepare_kontext, get_schedule, denoise,
unpack), modules/layers.py (timestep_embedding), util.py (save_image), cli_kontext.py (main).
"""

import inspect
from fractions import Fraction
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pixel_unshuffle

import bfl_code
import fixture_io
import synthetic
from parts.resize import picture

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SEED = 7
STEPS = [1, 4, 28, 30, 50]
TOKENS = [6, 256, 4042, 4096, 4150]
GUIDANCE = [1.0, 2.5, 3.5, 4.0]
# Target sizes (width, height): two not divisible by 16, and one divisible.
NOISE = [(100, 50), (33, 17), (48, 32)]
# (image size, requested width and height); None follows the image.
TARGETS = [
    ((640, 480), (None, None)), ((300, 1000), (None, None)), ((640, 480), (1024, 1024)), ((640, 480), (1000, 700)), ((640, 480), (17, 16)),
    ((640, 480), (None, 752)), ((640, 480), (752, None)), ((90, 160), (513, None)), ((90, 160), (None, 1)), ((90, 160), (1569, 671)),
]  # fmt: skip
OTHERS = [(1, 1), (20000, 10), (10, 20000), (640, 480), (480, 640), (1920, 1080), (1080, 1920), (97, 101), (101, 97), (451, 300), (17, 1000)]
# A small image and the only size to fit it to, to keep all stages small.
CONTEXT = ((50, 34), (48, 32))
EULER_STEPS = 3


def text(_prompt):
    """Stub for T5."""
    return torch.zeros(1, 2, 4)


def pooled(_prompt):
    """Stub for CLIP."""
    return torch.zeros(1, 4)


class Patches:
    """Stub for the autoencoder: the first 16 values of each 8x8 patch."""

    @staticmethod
    def encode(pixels):
        return pixel_unshuffle(pixels, 8)[:, :16]


class Blank:
    """Stub for an image file: only a size, so that large ones cost nothing."""

    def __init__(self, size):
        self.size = size

    def convert(self, _mode):
        return self

    def resize(self, size, _filter):
        return np.zeros((size[1], size[0], 3), dtype=np.uint8)


def prepared(size, width=None, height=None):
    """Returns the inputs, width and height of prepare_kontext for a blank image of this size."""
    sampling = bfl_code.module("sampling")
    opened, sampling.Image.open = sampling.Image.open, Blank
    try:
        inputs, height, width = sampling.prepare_kontext(text, pooled, "", Patches, size, SEED, "cpu", width, height)
    finally:
        sampling.Image.open = opened
    return inputs, width, height


def schedules():
    """`sigmas.TOKENS.STEPS` [STEPS + 1], and `sigmas.unshifted.STEPS` as for schnell."""
    get_schedule = bfl_code.module("sampling").get_schedule
    out = {f"sigmas.{tokens}.{steps}": get_schedule(steps, tokens) for tokens in TOKENS for steps in STEPS}
    out |= {f"sigmas.unshifted.{steps}": get_schedule(steps, 4096, shift=False) for steps in STEPS}
    return {name: torch.tensor(sigmas) for name, sigmas in out.items()}


def denoise(dtype, steps, guidance, velocities):
    """Runs their loop with a model that returns `velocities`; also returns its input at each step."""
    sampling = bfl_code.module("sampling")
    seen = []

    def model(img, timesteps, guidance, **_):
        seen.append((img.clone(), timesteps, guidance))
        # The model also answers for the reference's tokens.
        return torch.cat((velocities[len(seen) - 1], img[:, velocities[0].shape[1] :]), dim=1)

    start = synthetic.draw("input.start", [1, 6, 64]).to(dtype)
    context, ids = synthetic.draw("input.context", [1, 4, 64]).to(dtype), torch.zeros(1, 6, 3)
    end = sampling.denoise(
        model, start, ids, None, None, None, sampling.get_schedule(steps, 4096), guidance, None, context, ids[:, :4]
    )
    return end, seen


def times(name, dtype):
    """`times.D` [30] and `guidance.D` [4] on their embedding's scale of 1000, `embedding.D` [3, 256] of
    every tenth time."""
    embed = bfl_code.module("modules.layers").timestep_embedding
    still = [torch.zeros(1, 6, 64, dtype=dtype)] * 30
    times = torch.cat([t for _, t, _ in denoise(dtype, 30, 2.5, still)[1]])
    guidance = torch.cat([denoise(dtype, 1, value, still)[1][0][2] for value in GUIDANCE])
    # The first line of timestep_embedding, the only rounding before the sinusoids.
    scaled = {f"times.{name}": (1000.0 * times).float(), f"guidance.{name}": (1000.0 * guidance).float()}
    return scaled | {f"embedding.{name}": embed(times[::10], 256)}


def euler(name, dtype):
    """`euler.D.{velocities,states}` [3, 6, 64], the states before each step, and `euler.D.end` [6, 64]."""
    velocities = [synthetic.draw(f"input.velocity.{i}", [1, 6, 64]).to(dtype) for i in range(EULER_STEPS)]
    end, seen = denoise(dtype, EULER_STEPS, 2.5, velocities)
    states = torch.cat([img[:, :6] for img, _, _ in seen])
    return {f"euler.{name}.velocities": torch.cat(velocities), f"euler.{name}.states": states, f"euler.{name}.end": end[0]}


def noise(name, dtype):
    """`noise.WxH.D`: draws [1, 16, h, w] for a target of width W and height H."""
    get_noise = bfl_code.module("sampling").get_noise
    return {f"noise.{w}x{h}.{name}": get_noise(1, h, w, "cpu", dtype, SEED) for w, h in NOISE}


def tokens():
    """`tokens.img` [1, L, 64] and `tokens.ids` [1, L, 3] of the last draw above, `tokens.unpacked` back again."""
    sampling = bfl_code.module("sampling")
    width, height = NOISE[-1]
    inputs = sampling.prepare(text, pooled, sampling.get_noise(1, height, width, "cpu", torch.bfloat16, SEED), "")
    return {"tokens.img": inputs["img"], "tokens.ids": inputs["img_ids"], "tokens.unpacked": sampling.unpack(inputs["img"], height, width)}


def picture_sizes():
    """All preferred sizes, both sides of the boundary between each and the next, the boundary itself, and some others."""
    preferred = bfl_code.module("util").PREFERED_KONTEXT_RESOLUTIONS
    ratios = [Fraction(w, h) for w, h in preferred]
    borders = [(low + high) / 2 for low, high in zip(ratios, ratios[1:])]
    sizes = preferred + [b.as_integer_ratio() for b in borders] + OTHERS
    return sizes + [(int(border * 1000) + more, 1000) for border in borders for more in (0, 1)]


def geometry():
    """`buckets` rows (image width and height, those of the fitted size); `targets` rows (the image's, the requested
    ones with 0 for None, those of the result)."""
    sampling = bfl_code.module("sampling")
    buckets, targets = [], []
    for size in picture_sizes():
        original = prepared(size)[0]["img_cond_orig"]
        buckets.append([*size, original.shape[3], original.shape[2]])
    for size, asked in TARGETS:
        inputs, width, height = prepared(size, *asked)
        latents = sampling.unpack(inputs["img"], height, width)
        targets.append([*size, *(side or 0 for side in asked), 8 * latents.shape[3], 8 * latents.shape[2]])
    return {"buckets": torch.tensor(buckets, dtype=torch.int32), "targets": torch.tensor(targets, dtype=torch.int32)}


def context():
    """`context.picture` and `context.fitted`, 8-bit RGB [H, W, 3]; `context.img` and `context.ids`, the tokens [1, L, 64]
    and [1, L, 3] of the patches of its pixels."""
    sampling = bfl_code.module("sampling")
    before, after = CONTEXT
    pixels, file = picture("mixed", *before, SEED), BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    preferred, sampling.PREFERED_KONTEXT_RESOLUTIONS = sampling.PREFERED_KONTEXT_RESOLUTIONS, [after]
    inputs, _, _ = sampling.prepare_kontext(text, pooled, "", Patches, file, SEED, "cpu")
    sampling.PREFERED_KONTEXT_RESOLUTIONS = preferred
    values = inputs["img_cond_orig"]
    fitted = ((values + 1) * 127.5).round()
    if not torch.equal(fitted / 127.5 - 1, values):
        raise ValueError("the picture's levels cannot be told from its values")
    return {
        "context.picture": torch.from_numpy(pixels),
        "context.fitted": fitted[0].permute(1, 2, 0).byte(),
        "context.img": inputs["img_cond_seq"],
        "context.ids": inputs["img_cond_seq_ids"],
    }


def rounding():
    """`values` [1, 3, 16, 32]: all 256 levels, then a ramp that overshoots them; `levels` [16, 32, 3] as written."""
    levels = torch.arange(256) / 127.5 - 1
    values = torch.cat((levels, torch.linspace(-1.2, 1.2, 3 * 16 * 32 - 256))).reshape(1, 3, 16, 32)
    return {"values": values, "levels": torch.from_numpy(np.array(bfl_code.levels(values)))}


def defaults():
    """`defaults` (steps, guidance) of their command line."""
    given = inspect.signature(bfl_code.module("cli_kontext").main).parameters
    return {"defaults": torch.tensor([given["num_steps"].default, given["guidance"].default], dtype=torch.float64)}


@torch.no_grad()
def make():
    tensors = schedules() | tokens() | geometry() | context() | rounding() | defaults()
    for name, dtype in DTYPES.items():
        tensors |= times(name, dtype) | euler(name, dtype) | noise(name, dtype)
    # Their program only draws bf16; the longest f32 draw would repeat noise.safetensors.
    del tensors["noise.100x50.f32"]
    fixture_io.save("bfl", tensors, commit="802fb47", steps=STEPS, tokens=TOKENS, guidance=GUIDANCE, seed=SEED)
