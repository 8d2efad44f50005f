"""gradients.safetensors: one training step of FluxTransformer2DModel: loss and gradients, of all weights, of a LoRA and of a DoRA.

Source: diffusers 0.38 examples/dreambooth/train_dreambooth_lora_flux_kontext.py (`main`, from "Sample noise that we'll
add to the latents" to the backward pass), training_utils.py (`compute_loss_weighting_for_sd3`); peft's LoRA layers.

`input.*` enters every case. `CASE.loss.SCHEME` is a scalar. `CASE.probes.SCHEME` [P, 1 + K] has a row for each
parameter in the order of their names: its gradient's L2 norm, and its products with K random directions, which are
synthetic weights called `PARAMETER.direction.INDEX`. `CASE.gradient.PARAMETER` is a whole gradient; for `lora` and
`dora` the parameters have the names of peft's state dict. The metadata's `shapes` has the shapes of each model's parameters.
"""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from diffusers.training_utils import compute_loss_weighting_for_sd3
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import fixture_io
import synthetic
from parts.schedule import DEV

BASE = {
    "num_layers": 2,
    "num_single_layers": 2,
    "in_channels": 12,
    "joint_attention_dim": 14,
    "pooled_projection_dim": 11,
}
NARROW = {"num_attention_heads": 3, "attention_head_dim": 6, "axes_dims_rope": [2, 2, 2]}
WIDE = {"num_attention_heads": 2, "attention_head_dim": 18, "axes_dims_rope": [4, 6, 8]}
CONFIGS = {
    "narrow": BASE | NARROW | {"guidance_embeds": True},
    "wide": BASE | WIDE | {"guidance_embeds": True},
    "plain": BASE | WIDE | {"guidance_embeds": False},
}
SEED = 47
ITEMS, TARGET, REFERENCE, TEXT = 3, (4, 3), (2, 3), 5
SCHEMES = ["none", "sigma_sqrt", "cosmap"]
# Indices into the scheduler's 1000 training steps, the first of which is noise.
INDICES = [70, 480, 850]
GUIDANCE = 1.0
DIRECTIONS = 4
# name: config, with the reference picture
CASES = {"narrow": ("narrow", True), "wide": ("wide", True), "plain": ("plain", False)}
LORA = {
    "r": 3,
    "lora_alpha": 5,
    "target_modules": [
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    ],
}


def inputs():
    """`input.*`: packed latents [3, L, C] of the image, its noise and the reference, the prompt, levels and ids."""

    def draw(name, *shape):
        return synthetic.draw(f"input.{name}", [ITEMS, *shape])

    def ids(grid):
        return FluxKontextPipeline._prepare_latent_image_ids(1, *grid, "cpu", torch.float32)

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(DEV)
    reference_ids = ids(REFERENCE)
    reference_ids[..., 0] = 1
    target, reference = (rows * columns for rows, columns in (TARGET, REFERENCE))
    return {
        "picture": draw("picture", target, BASE["in_channels"]),
        "noise": draw("noise", target, BASE["in_channels"]),
        "reference": draw("reference", reference, BASE["in_channels"]),
        "prompt_embeds": draw("prompt_embeds", TEXT, BASE["joint_attention_dim"]),
        "pooled": draw("pooled", BASE["pooled_projection_dim"]),
        "target_ids": ids(TARGET),
        "reference_ids": reference_ids,
        "sigmas": scheduler.sigmas[INDICES],
        "timesteps": scheduler.timesteps[INDICES],
    }


def step(model, given, with_reference, scheme):
    """Returns the loss of one training step; the model holds the gradients."""
    sigmas = given["sigmas"].reshape(-1, 1, 1)
    hidden = (1.0 - sigmas) * given["picture"] + sigmas * given["noise"]
    image_ids = given["target_ids"]
    if with_reference:
        hidden = torch.cat([hidden, given["reference"]], dim=1)
        image_ids = torch.cat([image_ids, given["reference_ids"]])
    prediction = model(
        hidden_states=hidden,
        timestep=given["timesteps"] / 1000,
        guidance=torch.tensor([GUIDANCE]).expand(ITEMS) if model.config.guidance_embeds else None,
        pooled_projections=given["pooled"],
        encoder_hidden_states=given["prompt_embeds"],
        txt_ids=torch.zeros(TEXT, 3),
        img_ids=image_ids,
        return_dict=False,
    )[0][:, : given["picture"].shape[1]]
    weighting = compute_loss_weighting_for_sd3(weighting_scheme=scheme, sigmas=sigmas)
    target = given["noise"] - given["picture"]
    loss = torch.mean((weighting.float() * (prediction.float() - target.float()) ** 2).reshape(ITEMS, -1), 1).mean()
    model.zero_grad()
    loss.backward()
    return loss


def probe(name, gradient):
    """Returns the norm of a gradient and its products with the directions."""
    directions = [synthetic.weight(f"{name}.direction.{i}", gradient.shape, SEED).double() for i in range(DIRECTIONS)]
    gradient = gradient.double()
    return torch.stack([gradient.norm(), *((gradient * d).sum() for d in directions)]).float()


def full(case, given):
    """One case with all weights trained."""
    config, with_reference = CASES[case]
    model = synthetic.fill_(FluxTransformer2DModel(**CONFIGS[config]), SEED)
    out = {}
    for scheme in SCHEMES:
        out[f"{case}.loss.{scheme}"] = step(model, given, with_reference, scheme)
        gradients = {name: parameter.grad for name, parameter in sorted(model.named_parameters())}
        out[f"{case}.probes.{scheme}"] = torch.stack([probe(*item) for item in gradients.items()])
        if case == "narrow" and scheme == "none":
            out |= {f"{case}.gradient.{name}": gradient.clone() for name, gradient in gradients.items()}
    return out, {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def lora(case, given, **options):
    """The narrow model, frozen, with adapters from synthetic weights; a DoRA's row norms are around one."""
    model = synthetic.fill_(FluxTransformer2DModel(**CONFIGS["narrow"]), SEED).requires_grad_(False)
    model.add_adapter(LoraConfig(init_lora_weights=False, **LORA, **options))
    for name, tensor in get_peft_model_state_dict(model).items():
        made = f"{name}.scale" if tensor.ndim == 1 else name
        tensor.data.copy_(synthetic.weight(made, tensor.shape, SEED))
    loss = step(model, given, True, "none")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = get_peft_model_state_dict(model, {name: parameter.grad for name, parameter in trained.items()})
    if len(gradients) != len(trained):
        raise ValueError(f"{len(trained)} adapter weights are trained, and {len(gradients)} have names")
    return {f"{case}.loss.none": loss} | {f"{case}.gradient.{name}": gradient for name, gradient in gradients.items()}


def make():
    given = inputs()
    tensors, shapes = {f"input.{name}": value for name, value in given.items()}, {}
    for case, (config, _) in CASES.items():
        made, shapes[config] = full(case, given)
        tensors |= made
    tensors |= lora("lora", given) | lora("dora", given, use_dora=True)
    fixture_io.save("gradients", tensors, seed=SEED, configs=CONFIGS, shapes=shapes, lora=LORA, guidance=GUIDANCE)
