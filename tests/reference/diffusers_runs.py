"""The diffusers half of compare_pipeline.py: the cases, and FluxKontextPipeline run on them with its stages recorded."""

import time

import diffusers
import safetensors.torch
import torch
import transformers
from diffusers import FluxKontextPipeline
from PIL import Image

import checkpoint
import synthetic
from parts.resize import picture

SEED_CASE = {"seed": 7, "width": 80, "height": 48, "max_area": 80 * 48}
# `image` is (width, height) of the reference image, None for text-to-image. The reference is always resized
# to a bucket of 1 MP, only the target is small. Sizes are the requested ones, before the pipeline fits them
# to max_area.
CASES = {
    "edit_square": {
        "image": (96, 96), "prompt": "Make the cat wear a red hat, keep the background unchanged.",
        "width": 1024, "height": 1024, "max_area": 128 * 128, "steps": 4, "guidance": 2.5,
    },
    "edit_wide": {
        "image": (160, 90), "prompt": "change the season to winter — snow on the ROOFS, 3 warm lights!",
        "width": 1392, "height": 752, "max_area": 128 * 128, "steps": 3, "guidance": 3.5,
    },
    "edit_tall_true_cfg": {
        "image": (75, 131), "prompt": "replace the logo with the word 'rust'", "negative": "blurry, low quality",
        "true_cfg": 2.0, "width": 752, "height": 1328, "max_area": 128 * 128, "steps": 3, "guidance": 2.5,
    },
    "edit_two_prompts": {
        "image": (96, 96), "prompt": "a red hat", "prompt_2": "Make the cat wear a red hat, keep the background.",
        "negative": "blurry", "negative_2": "low quality, a blurry hat", "true_cfg": 2.0,
        "width": 1024, "height": 1024, "max_area": 128 * 128, "steps": 2, "guidance": 2.5,
    },
    "generate": {
        "image": None, "prompt": "a lighthouse at dusk, oil painting",
        "width": 192, "height": 128, "max_area": 192 * 128, "steps": 4, "guidance": 2.5,
    },
}  # fmt: skip
CHECKPOINTS = {"odd": ["--shard", "60KB"], "standard": ["--preset", "standard"]}


def write_checkpoint(name, folder):
    """Writes `folder/diffusers`, and `folder/bfl` for the standard sizes, the only ones the original layout can express."""
    layout = "both" if name == "standard" else "diffusers"
    out = folder if layout == "both" else folder / "diffusers"
    checkpoint.write(checkpoint.parse([str(out), "--layout", layout, *CHECKPOINTS[name]]))


def quiet():
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def load(folder):
    quiet()
    pipe = FluxKontextPipeline.from_pretrained(folder / "diffusers", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def record(pipe):
    """Wraps the pipeline's own stages on this instance; their results appear in the dictionary returned."""
    stages = {}
    encode, context, prepare = pipe.encode_prompt, pipe._encode_vae_image, pipe.prepare_latents

    def encode_prompt(**given):
        out = encode(**given)
        prefix = "negative_" if "prompt_embeds" in stages else ""
        stages.update({f"{prefix}prompt_embeds": out[0], f"{prefix}pooled_prompt_embeds": out[1]})
        return out

    def encode_vae_image(**given):
        stages["context_latents"] = context(**given)
        return stages["context_latents"]

    def prepare_latents(*given):
        out = prepare(*given)
        stages["latents"] = out[0]
        return out

    pipe.encode_prompt, pipe._encode_vae_image, pipe.prepare_latents = encode_prompt, encode_vae_image, prepare_latents
    return stages


def forget(pipe):
    """Undoes `record`."""
    for name in ("encode_prompt", "_encode_vae_image", "prepare_latents"):
        del pipe.__dict__[name]


def noise(pipe, case):
    """Returns packed f32 noise [1, L, 64] for the pipeline's target, whose size is taken from the pipeline."""
    sizes = {}

    class Reached(Exception):
        pass

    def prepare_latents(_image, _batch, _channels, height, width, *_):
        sizes.update(height=height, width=width)
        raise Reached

    pipe.prepare_latents = prepare_latents
    try:
        pipe(prompt="", **arguments(case | {"image": None}))
    except Reached:
        pass
    del pipe.prepare_latents
    return synthetic.draw("input.noise", [1, sizes["height"] // 16 * (sizes["width"] // 16), 64])


def arguments(case):
    """Returns the keyword arguments of the pipeline's call except prompt, image and noise; `call` adds to them."""
    given = {"width": case["width"], "height": case["height"], "max_area": case["max_area"]}
    given |= {"num_inference_steps": case["steps"], "guidance_scale": case["guidance"]}
    if "negative" in case:
        given |= {"negative_prompt": case["negative"], "true_cfg_scale": case["true_cfg"]}
    given |= {name: case[key] for name, key in (("prompt_2", "prompt_2"), ("negative_prompt_2", "negative_2")) if key in case}
    return given | case.get("call", {})


@torch.no_grad()
def run(pipe, case, folder):
    """Runs one case and writes image.png, noise.safetensors, diffusers.safetensors and diffusers.png."""
    folder.mkdir(parents=True, exist_ok=True)
    image = None
    if case["image"]:
        image = Image.fromarray(picture("mixed", *case["image"], seed=5))
        image.save(folder / "image.png")
    start = noise(pipe, case)
    safetensors.torch.save_file({"latents": start}, folder / "noise.safetensors")
    stages = record(pipe)
    steps = {}

    def after_step(_pipe, i, _t, tensors):
        steps[f"step_{i}"] = tensors["latents"].clone()
        return tensors

    began = time.time()
    out = pipe(image=image, prompt=case["prompt"], latents=start, callback_on_step_end=after_step, **arguments(case))
    forget(pipe)
    out.images[0].save(folder / "diffusers.png")
    stages |= steps | {"final": steps[f"step_{case['steps'] - 1}"].clone()}
    stages = {name: tensor.float().contiguous().clone() for name, tensor in stages.items()}
    safetensors.torch.save_file(stages, folder / "diffusers.safetensors")
    print(f"diffusers {folder.parent.name}/{folder.name}: {time.time() - began:.0f} s, {out.images[0].size}", flush=True)


@torch.no_grad()
def starting_noise(pipe, path):
    """`f32` and `bf16`: the latents the pipeline itself starts from under SEED_CASE's seed, packed."""
    generator = lambda: torch.Generator("cpu").manual_seed(SEED_CASE["seed"])  # noqa: E731
    size = {key: SEED_CASE[key] for key in ("width", "height", "max_area")}
    stages = record(pipe)
    pipe(prompt="rust", num_inference_steps=1, output_type="latent", generator=generator(), **size)
    forget(pipe)
    bf16 = pipe.prepare_latents(None, 1, 16, size["height"], size["width"], torch.bfloat16, "cpu", generator())[0]
    safetensors.torch.save_file({"f32": stages["latents"].contiguous(), "bf16": bf16.contiguous()}, path)
