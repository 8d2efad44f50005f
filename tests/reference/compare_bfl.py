"""Runs Black Forest Labs' own transformer, autoencoder and sampling, and our `edit --conform bfl`, on one tiny checkpoint.

    cargo build --release --example edit
    BFL_FLUX=path/to/their/checkout python tests/reference/compare_bfl.py

On the CPU. In f32, their code, which hard-codes bf16, runs with f32 instead; in bf16, it runs unmodified except for
the transformer, which computes in f32 from weights and times of bf16, like ours by `--compute f32`. The text embeddings are
ours; everything else is theirs, including the noise. Prints the relative L2 error of each stage, and exits 1 if the noise
is not the same bit for bit, if an error is above 1e-4 (1e-3 in bf16, where a value that rounds the other way jumps by
4e-3), or if the image is more than one level off anywhere or by the same of the full scale on average.
"""

import argparse
import contextlib
import copy
import sys
import time
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image

import bfl_code
import checkpoint
from compare_pipeline import ROOT, picture_difference, relative_error, run_ours
from parts.resize import picture

# `image` is the size of the reference image, `size` the requested one: none, or sides to be rounded up.
CASES = {
    "follows_the_picture": {"image": (160, 90), "size": (None, None), "steps": 2, "guidance": None, "seed": 3, "dtype": "f32"},
    "rounded_up": {"image": (75, 131), "size": (100, 55), "steps": 4, "guidance": 4.0, "seed": 7, "dtype": "f32"},
    "one_side": {"image": (96, 96), "size": (None, 130), "steps": 3, "guidance": 1.0, "seed": 2**40 + 5, "dtype": "f32"},
    "in_bf16": {"image": (75, 131), "size": (100, 55), "steps": 6, "guidance": None, "seed": 7, "dtype": "bf16"},
}
TOLERANCE = {"f32": 1e-4, "bf16": 1e-3}
PROMPT = "Make the cat wear a red hat, keep the background unchanged."
DEPTH = 2


def models(folder):
    """Loads the checkpoint's weights into their transformer and autoencoder."""
    sizes, flux, autoencoder = checkpoint.PRESETS["standard"], bfl_code.module("model"), bfl_code.module("modules.autoencoder")
    heads, width = sizes["dit"]["num_attention_heads"], sizes["dit"]["attention_head_dim"]
    transformer = flux.Flux(flux.FluxParams(
        in_channels=64, out_channels=64, vec_in_dim=sizes["clip"]["hidden_size"], context_in_dim=sizes["t5"]["d_model"],
        hidden_size=heads * width, mlp_ratio=4.0, num_heads=heads, depth=DEPTH, depth_single_blocks=DEPTH,
        axes_dim=sizes["dit"]["axes_dims_rope"], theta=10_000, qkv_bias=True, guidance_embed=True,
    ))  # fmt: skip
    ae = autoencoder.AutoEncoder(autoencoder.AutoEncoderParams(
        resolution=256, in_channels=3, ch=sizes["vae"]["block_out_channels"][0], out_ch=3, ch_mult=[1, 2, 4, 4], num_res_blocks=2,
        z_channels=16, scale_factor=0.3611, shift_factor=0.1159,
    ))  # fmt: skip
    transformer.load_state_dict(safetensors.torch.load_file(folder / "flux1-kontext.safetensors"))
    ae.load_state_dict(safetensors.torch.load_file(folder / "ae.safetensors"))
    # The memory format of ours and diffusers'. In the other, PyTorch's group norm sums in another order on
    # CPUs, and the latents of a megapixel differ by 2e-4: there the other format is the more exact one.
    return transformer.eval(), ae.eval().to(memory_format=torch.channels_last)


def command(args, model, case, image, dump, png):
    """Returns the command line of our example."""
    width, height = case["size"]
    given = {
        "model": model, "image": image, "prompt": PROMPT, "width": width, "height": height, "steps": case["steps"],
        "guidance": case["guidance"], "seed": case["seed"], "device": "cpu", "dtype": case["dtype"], "compute": "f32", "conform": "bfl", "dump": dump, "out": png,
    }  # fmt: skip
    flags = [text for key, value in given.items() if value is not None for text in (f"--{key}", str(value))]
    return [str(args.binaries / "edit"), *flags]


def rounded(transformer):
    """Wraps the transformer: bf16 weights and results, times rounded as in bf16, computation in f32."""
    model, embed = bfl_code.module("model"), bfl_code.module("modules.layers").timestep_embedding
    model.timestep_embedding = lambda t, dim: embed((1000.0 * t).float(), dim, time_factor=1.0)
    transformer = copy.deepcopy(transformer).bfloat16().float()

    def forward(timesteps, guidance, **given):
        given = {name: tensor.float() for name, tensor in given.items()}
        return transformer(timesteps=timesteps, guidance=guidance, **given).bfloat16()

    return forward


def recorded(transformer, length, seen):
    """Wraps the transformer to record the target's latents before each step in `seen`."""

    def forward(img, **given):
        seen.append(img[:, :length].clone())
        return transformer(img=img, **given)

    return forward


@torch.no_grad()
def run_theirs(transformer, ae, case, image, text):
    """Runs cli_kontext.py's code from the loaded image to the result; returns all stages and the image."""
    sampling = bfl_code.module("sampling")
    embeds, pooled = (lambda _: text["prompt_embeds"]), (lambda _: text["pooled_prompt_embeds"])
    width, height = case["size"]
    with bfl_code.in_f32() if case["dtype"] == "f32" else contextlib.nullcontext():
        inputs, height, width = sampling.prepare_kontext(embeds, pooled, PROMPT, ae, image, case["seed"], "cpu", width, height)
    original, seen = inputs.pop("img_cond_orig"), []
    length = inputs["img"].shape[1]
    timesteps = sampling.get_schedule(case["steps"], length)
    guidance = 2.5 if case["guidance"] is None else case["guidance"]
    velocity = recorded(transformer if case["dtype"] == "f32" else rounded(transformer), length, seen)
    final = sampling.denoise(velocity, **inputs, timesteps=timesteps, guidance=guidance)
    context = sampling.unpack(inputs["img_cond_seq"], *original.shape[2:])
    stages = {"latents": inputs["img"], "context_latents": context}
    stages |= {f"step_{i}": latents for i, latents in enumerate([*seen[1:], final])} | {"final": final}
    return stages, bfl_code.levels(ae.decode(sampling.unpack(final.float(), height, width)))


def compare(args, name, transformer, ae):
    """Runs both halves of one case and prints its rows; True when all is within tolerance."""
    case, folder = CASES[name], args.save / name
    folder.mkdir(parents=True, exist_ok=True)
    image, dump, png = folder / "image.png", folder / "ours.safetensors", folder / "ours.png"
    for old in (dump, png):
        old.unlink(missing_ok=True)
    Image.fromarray(picture("mixed", *case["image"], seed=5)).save(image)
    if not run_ours(command(args, args.save / "model", case, image, dump, png)):
        return False
    ours, began = safetensors.torch.load_file(dump), time.time()
    stages, theirs = run_theirs(transformer, ae, case, image, ours)
    print(f"theirs {name}: {time.time() - began:.0f} s, {theirs.size}", flush=True)
    theirs.save(folder / "bfl.png")
    results, tolerance = [], TOLERANCE[case["dtype"]]
    for stage, expected in stages.items():
        # Compared in their dtype: our references are rounded at the transformer's input.
        got = ours[stage].to(expected.dtype) if stage in ours else None
        error, limit = relative_error(expected, got), 0 if stage == "latents" else tolerance
        results.append(error <= limit)
        print(f"{name:24} {stage:20} {error:10.2e} {'' if error <= limit else '  TOO LARGE'}")
    largest, mean, share = picture_difference(folder / "bfl.png", png)
    results.append(largest <= 1 and mean <= tolerance)
    print(f"{name:24} {'picture':20} {mean:10.2e} {'' if results[-1] else '  TOO LARGE'}  max {largest}, {share:.3%} differ", flush=True)
    return all(results)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, default=ROOT / "target" / "compare" / "conform_bfl", help="folder for all files")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target" / "release" / "examples")
    parser.add_argument("--case", action="append", choices=CASES, help="only this case; may be repeated")
    args = parser.parse_args()
    model = args.save / "model"
    depth = ["--layers", str(DEPTH), "--single-layers", str(DEPTH)]
    checkpoint.write(checkpoint.parse([str(model), "--preset", "standard", "--layout", "bfl", *depth]))
    transformer, ae = models(model)
    results = [compare(args, name, transformer, ae) for name in args.case or CASES]
    print("all within tolerance" if all(results) else f"{results.count(False)} of {len(results)} comparisons failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
