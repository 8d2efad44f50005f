"""samplers.safetensors: whole runs of diffusers' schedulers on given velocities and noise, and two draws of one generator.

Source: diffusers 0.38 schedulers/scheduling_flow_match_euler_discrete.py (also with `stochastic_sampling`),
scheduling_flow_match_heun_discrete.py and scheduling_dpmsolver_multistep.py (`flow_prediction`, dpmsolver++, order 2), each
on the sigmas of FluxKontextPipeline. The last two take no custom sigmas, so theirs are replaced after `set_timesteps`.
"""

import unittest.mock

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

import fixture_io
import synthetic
from parts.schedule import DEV, SCHNELL, schedule

STEPS = 5
SHAPE = [2, 6, 8]
SHIFTS = {"dev": (DEV, 4096), "shift3": (SCHNELL | {"shift": 3.0}, 256)}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SEED = 7


def euler(config, length):
    return schedule(config, STEPS, length)[0]


def consistency(config, length):
    return schedule(config | {"stochastic_sampling": True}, STEPS, length)[0]


def heun(config, length):
    flux = euler(config, length)
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    assert len(scheduler.timesteps) == 2 * STEPS - 1
    scheduler.timesteps = torch.cat([flux.timesteps[:1], flux.timesteps[1:].repeat_interleave(2)])
    scheduler.sigmas = torch.cat([flux.sigmas[:1], flux.sigmas[1:-1].repeat_interleave(2), flux.sigmas[-1:]])
    scheduler.set_begin_index(0)
    return scheduler


def dpmpp_2m(config, length):
    flux = euler(config, length)
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(STEPS)
    scheduler.timesteps, scheduler.sigmas = flux.timesteps, flux.sigmas
    scheduler.set_begin_index(0)
    return scheduler


def run(scheduler, velocities, noises, sample):
    """Returns the sample after each evaluation of the model [N, ...], and the timestep of each."""
    after, times, noises = [], [], iter(noises)
    with unittest.mock.patch("torch.randn_like", lambda sample: next(noises)):
        for velocity, time in zip(velocities, scheduler.timesteps):
            sample = scheduler.step(velocity.to(sample.dtype), time, sample, return_dict=False)[0]
            after.append(sample)
            times.append(time)
    return torch.stack(after), torch.stack(times)


def draws():
    """`draw.0` in bf16, then `draw.1` in f32: draws of one generator in turn, as of a run in bf16."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    return {f"draw.{i}": torch.randn([2, 13], generator=generator, dtype=dtype)
            for i, dtype in enumerate([torch.bfloat16, torch.float32])}


def make():
    drawn = {name: synthetic.draw(f"samplers.{name}", [count, *SHAPE]) for name, count in
             {"start": 1, "velocity": 2 * STEPS - 1, "noise": STEPS}.items()}
    tensors = dict(drawn) | draws()
    for shift, (config, length) in SHIFTS.items():
        tensors[f"{shift}.sigmas"] = euler(config, length).sigmas
        for name, scheduler in {"euler": euler, "consistency": consistency, "heun": heun, "dpmpp_2m": dpmpp_2m}.items():
            for dtype_name, dtype in DTYPES.items():
                after, times = run(scheduler(config, length), drawn["velocity"], drawn["noise"], drawn["start"][0].to(dtype))
                tensors[f"{name}.{shift}.{dtype_name}.after"] = after
            tensors[f"{name}.{shift}.times"] = times
    fixture_io.save("samplers", tensors, steps=STEPS, dev=DEV, seed=SEED)
