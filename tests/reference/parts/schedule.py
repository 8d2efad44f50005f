"""schedule.safetensors: the sigmas and timesteps FluxKontextPipeline steps through, and single Euler steps.

Source: diffusers 0.38 schedulers/scheduling_flow_match_euler_discrete.py, pipelines/flux/pipeline_flux_kontext.py
(calculate_shift, retrieve_timesteps), models/transformers/transformer_flux.py (forward).
"""

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift, retrieve_timesteps

import fixture_io
import synthetic

SHARED = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000}
DEV = SHARED | {"shift": 3.0, "use_dynamic_shifting": True}
SCHNELL = SHARED | {"shift": 1.0, "use_dynamic_shifting": False}
STEPS = [1, 2, 4, 8, 28, 30, 50]
LENGTHS = [256, 1024, 4096, 6032]
GUIDANCE = [1.0, 2.5, 3.5, 4.0]


def schedule(config, steps, length):
    """Returns the scheduler as the pipeline sets it up for `length` target tokens, and the pipeline's mu."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = calculate_shift(length, *(config[k] for k in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")))
    sigmas = np.linspace(1.0, 1 / steps, steps)
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=sigmas, mu=mu)
    scheduler.set_begin_index(0)
    return scheduler, mu


def schedules():
    """`dev.LENGTH.STEPS.*` and `schnell.STEPS.*`: sigmas [N + 1] with the closing 0, timesteps [N]; `mu.LENGTH`."""
    out = {}
    for length in LENGTHS:
        for steps in STEPS:
            scheduler, mu = schedule(DEV, steps, length)
            out[f"dev.{length}.{steps}.sigmas"] = scheduler.sigmas
            out[f"dev.{length}.{steps}.timesteps"] = scheduler.timesteps
        out[f"mu.{length}"] = torch.tensor([mu], dtype=torch.float64)
    for steps in (1, 4):
        scheduler, _ = schedule(SCHNELL, steps, 4096)
        out[f"schnell.{steps}.sigmas"] = scheduler.sigmas
        out[f"schnell.{steps}.timesteps"] = scheduler.timesteps
    return out


def embedded_times(dtype):
    """Returns the sinusoidal embedding's input in `dtype`, on the 0-1000 scale, back in float32."""
    timesteps = schedule(DEV, 28, 4096)[0].timesteps
    passed = timesteps.to(dtype) / 1000  # the pipeline
    return (passed.to(dtype) * 1000).float()  # the transformer


def embedded_guidance(dtype):
    return (torch.tensor(GUIDANCE).to(dtype) * 1000).float()


def euler(dtype):
    """One step of 28 at 4096 tokens, the fourth: `sample`, `velocity`, `next`, all in `dtype`."""
    scheduler, _ = schedule(DEV, 28, 4096)
    scheduler.set_begin_index(3)
    sample = synthetic.draw("input.sample", [1, 16, 64]).to(dtype)
    velocity = synthetic.draw("input.velocity", [1, 16, 64]).to(dtype)
    after = scheduler.step(velocity, scheduler.timesteps[3], sample, return_dict=False)[0]
    return {"sample": sample, "velocity": velocity, "next": after}


def make():
    tensors = schedules()
    for name, dtype in {"f32": torch.float32, "bf16": torch.bfloat16}.items():
        tensors[f"embedded_times.{name}"] = embedded_times(dtype)
        tensors[f"embedded_guidance.{name}"] = embedded_guidance(dtype)
        tensors |= {f"euler.{name}.{key}": value for key, value in euler(dtype).items()}
    fixture_io.save("schedule", tensors, dev=DEV, schnell=SCHNELL, steps=STEPS, lengths=LENGTHS, guidance=GUIDANCE)
