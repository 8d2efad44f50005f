"""inpaint.safetensors: runs of FluxKontextInpaintPipeline on a tiny checkpoint, from prompt to image, in float32.

The metadata are enough to write the checkpoint again: `files` has its text files by path, `weights` the names and
shapes of the tensors in each of its other files, which follow the rule in synthetic.py under `seed`. `cases` has the
arguments of the runs, `starts` rows of steps, strength, and the first step that is run.

`image` and `reference` [H, W, 3], `mask` [H, W] are the inputs, uint8; `mask_pixels` is the mask at the image's
preferred size, 0 or 1. Of each case, latents packed:

* `{prompt_embeds,pooled_prompt_embeds}`, and with the prefix `negative_` those of the negative prompt
* `mask` [1, L, 64], 0 or 1 in float32; `noise`, `source` (the image), `start` (before the first step), all [1, L, 64]
* `context` [1, C, 64] and `context_ids` [C, 3]: what the transformer reads beside the L tokens of the target
* `sigmas` of the steps that are run and the closing 0; `step_I` [1, L, 64] after step I and its blend; `picture`
  [H, W, 3], uint8

Source: diffusers 0.38 pipelines/flux/pipeline_flux_kontext_inpaint.py, image_processor.py.
"""

import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import safetensors.torch
import torch
from diffusers import FluxKontextInpaintPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext_inpaint
from PIL import Image

import checkpoint
import fixture_io
import synthetic
from diffusers_runs import quiet
from parts.resize import picture

SEED = 41
MODEL = ["--layers", "1", "--single-layers", "1", "--seed", str(SEED)]
TOKENS = 48
# (width, height). They stand in for the pipeline's 17 sizes near one megapixel, in the same order; in
# `kontext.json`, for those of kontext.
SIZES = [(64, 96), (64, 64), (96, 64)]
# Width and height of the inputs, no multiples of 16. The reference has another preferred size than the image.
IMAGE, REFERENCE = (103, 70), (45, 66)
HAT = "make the cat wear a red hat"
CASES = {
    "mask": {"prompt": HAT, "steps": 4, "guidance": 3.5, "seed": 1},
    "reference": {"prompt": "replace the logo with the word 'rust'", "reference": True, "steps": 4, "guidance": 2.5, "seed": 2},
    # 7 * 0.6 is no integer: 5 steps are run.
    "strength": {"prompt": HAT, "strength": 0.6, "steps": 7, "guidance": 2.5, "seed": 3},
    "true_cfg": {"prompt": HAT, "negative": "blurry, low quality", "true_cfg": 2.0, "steps": 4, "guidance": 2.5, "seed": 4},
}  # fmt: skip
# Steps and strength. Products of the last three are not exact in double precision, and one more step is run.
STARTS = [(28, 1.0), (28, 0.99), (28, 0.6), (7, 0.6), (4, 0.5), (4, 0.1), (1, 0.01), (1, 0.6), (25, 0.56), (75, 0.68), (100, 0.55)]  # fmt: skip


def mask():
    """Draws a soft disc, with lines and dots that a mask of one pixel in eight loses or widens; uint8 [H, W]."""
    width, height = IMAGE
    y, x = np.mgrid[0:height, 0:width]
    level = np.clip((24 - np.hypot(x - 38, y - 33)) / 12, 0, 1) * 255
    level[:, 70:72] = level[50:53, 60:] = level[10:12, 64:100] = 255
    level[:, 94] = np.linspace(0, 255, height)
    level[60:68:3, 4:30:5] = 200
    return level.round().astype(np.uint8)


def write_model(folder):
    """Writes the checkpoint and returns its pipeline, text files, and the names and shapes of its tensors."""
    edit = checkpoint.build(checkpoint.parse([str(folder), *MODEL]))
    checkpoint.write_diffusers(edit, folder)
    defaults = {"sizes": SIZES, "max_sequence_length": TOKENS}
    (folder / "kontext.json").write_text(json.dumps(defaults))
    files, weights = {}, {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix != ".safetensors":
            files[name] = path.read_text(encoding="utf-8")
            continue
        tensors = safetensors.torch.load_file(path)
        assert all(torch.equal(tensor, synthetic.weight(key, tensor.shape, SEED)) for key, tensor in tensors.items())
        weights[name] = {key: list(tensor.shape) for key, tensor in tensors.items()}
    return FluxKontextInpaintPipeline(**edit.components), files, weights


def watched(pipe, stages):
    """Returns patches of the pipeline's own stages that record their results in `stages`."""
    encode, prepare, prepare_mask = pipe.encode_prompt, pipe.prepare_latents, pipe.prepare_mask_latents
    preprocess = pipe.mask_processor.preprocess

    def encode_prompt(**given):
        out = encode(**given)
        prefix = "negative_" if "prompt_embeds" in stages else ""
        stages.update({f"{prefix}prompt_embeds": out[0], f"{prefix}pooled_prompt_embeds": out[1]})
        return out

    def prepare_latents(*given):
        out = prepare(*given)
        stages.update(start=out[0], source=out[1], noise=out[6])
        return out

    def prepare_mask_latents(*given):
        out = prepare_mask(*given)
        stages["mask"] = out[0]
        return out

    def preprocess_mask(*given, **named):
        out = preprocess(*given, **named)
        stages["mask_pixels"] = out[0, 0].to(torch.uint8)
        return out

    return [
        mock.patch.object(pipe, "encode_prompt", encode_prompt),
        mock.patch.object(pipe, "prepare_latents", prepare_latents),
        mock.patch.object(pipe, "prepare_mask_latents", prepare_mask_latents),
        mock.patch.object(pipe.mask_processor, "preprocess", preprocess_mask),
    ]


def run(pipe, case, inputs):
    """Runs one case and returns its stages, by the names in this module's description without the case."""
    stages = {}

    def before_transformer(_module, _args, given):
        target = stages["start"].shape[1]
        stages["context"] = given["hidden_states"][:, target:]
        stages["context_ids"] = given["img_ids"][target:]

    def after_step(_pipe, i, _t, tensors):
        stages[f"step_{i}"] = tensors["latents"].clone()
        return tensors

    given = {"num_inference_steps": case["steps"], "guidance_scale": case["guidance"], "max_sequence_length": TOKENS}
    given["generator"] = torch.Generator("cpu").manual_seed(case["seed"])
    given |= {"strength": case["strength"]} if "strength" in case else {}
    given |= {"image_reference": inputs["reference"]} if case.get("reference") else {}
    given |= {"negative_prompt": case["negative"], "true_cfg_scale": case["true_cfg"]} if "negative" in case else {}
    hook = pipe.transformer.register_forward_pre_hook(before_transformer, with_kwargs=True)
    patches = watched(pipe, stages)
    for patch in patches:
        patch.start()
    out = pipe(image=inputs["image"], mask_image=inputs["mask"], prompt=case["prompt"], callback_on_step_end=after_step, **given)
    for patch in patches:
        patch.stop()
    hook.remove()
    stages["sigmas"] = pipe.scheduler.sigmas[pipe.scheduler.begin_index :]
    stages["picture"] = torch.from_numpy(np.array(out.images[0]))
    return stages


def start(pipe, steps, strength):
    """Returns the first step that the pipeline runs."""
    return steps - pipe.get_timesteps(steps, strength, "cpu")[1]


@torch.no_grad()
def make():
    quiet()
    pixels = {"image": picture("mixed", *IMAGE, seed=8), "reference": picture("mixed", *REFERENCE, seed=9), "mask": mask()}
    inputs = {name: Image.fromarray(values) for name, values in pixels.items()}
    tensors = {name: torch.from_numpy(values) for name, values in pixels.items()}
    with tempfile.TemporaryDirectory() as folder:
        pipe, files, weights = write_model(Path(folder))
    pipe.set_progress_bar_config(disable=True)
    with mock.patch.object(pipeline_flux_kontext_inpaint, "PREFERRED_KONTEXT_RESOLUTIONS", SIZES):
        for name, case in CASES.items():
            stages = run(pipe, case, inputs)
            tensors["mask_pixels"] = stages.pop("mask_pixels")
            tensors |= {f"{name}.{key}": value for key, value in stages.items()}
    starts = [(steps, strength, start(pipe, steps, strength)) for steps, strength in STARTS]
    fixture_io.save("inpaint", tensors, seed=SEED, cases=CASES, starts=starts, files=files, weights=weights)
