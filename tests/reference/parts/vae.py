"""vae.safetensors: AutoencoderKL as FLUX.1 and as Stable Diffusion use it, and AutoencoderTiny, in float32.

Source: diffusers 0.38 models/autoencoders/{autoencoder_kl,autoencoder_tiny,vae}.py.
"""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

import fixture_io
import synthetic

BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
FLUX = BLOCKS | {
    "block_out_channels": [8, 16, 16, 24],
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": True,
    "force_upcast": True,
}
SD = BLOCKS | {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8, "scaling_factor": 0.18215}
WIDTH = [8, 8, 8, 8]
TINY = {"encoder_block_out_channels": WIDTH, "decoder_block_out_channels": WIDTH}
SEEDS = {"flux": 11, "sd": 12, "tiny4": 13, "tiny16": 14}
SIZES = {"one": [1, 32, 48], "two": [2, 16, 24]}


def images(size):
    """Draws pixels in [-1, 1], [N, 3, H, W]."""
    n, h, w = SIZES[size]
    return synthetic.draw(f"input.pixels.{size}", [n, 3, h, w]).mul(0.5).clamp(-1, 1)


def latents(size, channels):
    """Draws latents as the transformer sees them, [N, C, H/8, W/8]."""
    n, h, w = SIZES[size]
    return synthetic.draw(f"input.latents.{size}", [n, channels, h // 8, w // 8])


def kl(name, config):
    """`NAME.SIZE.{mean,logvar,scaled,decoded}`; `decoded` is the image of the scaled latents `NAME.SIZE.latents`."""
    vae = synthetic.fill_(AutoencoderKL(**config), SEEDS[name])
    shift = vae.config.shift_factor or 0.0
    out = {}
    for size in SIZES:
        posterior = vae.encode(images(size)).latent_dist
        z = latents(size, config["latent_channels"])
        out |= {
            f"{name}.{size}.mean": posterior.mean,
            f"{name}.{size}.logvar": posterior.logvar,
            f"{name}.{size}.scaled": (posterior.mode() - shift) * vae.config.scaling_factor,
            f"{name}.{size}.latents": z,
            f"{name}.{size}.decoded": vae.decode(z / vae.config.scaling_factor + shift).sample,
        }
    return out


def tiny(name, config):
    """`NAME.SIZE.{encoded,latents,decoded}` of AutoencoderTiny."""
    vae = synthetic.fill_(AutoencoderTiny(**config), SEEDS[name])
    out = {}
    for size in SIZES:
        z = latents(size, config["latent_channels"])
        out[f"{name}.{size}.encoded"] = vae.encode(images(size)).latents
        out[f"{name}.{size}.latents"] = z
        out[f"{name}.{size}.decoded"] = vae.decode(z).sample
    return out


@torch.no_grad()
def make():
    tiny4, tiny16 = TINY | {"latent_channels": 4}, TINY | {"latent_channels": 16}
    tensors = {f"pixels.{size}": images(size) for size in SIZES}
    tensors |= kl("flux", FLUX) | kl("sd", SD) | tiny("tiny4", tiny4) | tiny("tiny16", tiny16)
    fixture_io.save("vae", tensors, flux=FLUX, sd=SD, tiny4=tiny4, tiny16=tiny16, seeds=SEEDS)
