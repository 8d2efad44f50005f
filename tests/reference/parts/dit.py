"""dit.safetensors: FluxTransformer2DModel with heads of an unusual width, in float32, with its inner states.

Source: diffusers 0.38 models/transformers/transformer_flux.py, models/embeddings.py.
"""

import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

import fixture_io
import synthetic

BASE = {
    "num_attention_heads": 3,
    "attention_head_dim": 18,
    "axes_dims_rope": [4, 6, 8],
    "num_layers": 2,
    "num_single_layers": 3,
    "in_channels": 64,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
}
CONFIGS = {"guided": BASE | {"guidance_embeds": True}, "plain": BASE | {"guidance_embeds": False}}
SEED = 31
TARGET, REFERENCE, TEXT = (4, 6), (4, 4), 7
# name: config, timestep of each batch item, guidance of each, with the reference image
CASES = {
    "guided.t1": ("guided", [1.0], [2.5], True),
    "guided.t037": ("guided", [0.37], [2.5], True),
    "guided.batch": ("guided", [0.37, 0.8], [2.5, 4.0], True),
    "guided.generate": ("guided", [0.37], [2.5], False),
    "plain.t1": ("plain", [1.0], None, True),
    "plain.t037": ("plain", [0.37], None, True),
    "plain.batch": ("plain", [0.37, 0.8], None, True),
}
FLUX_AXES = [16, 56, 56]


def image_ids(reference):
    """Returns the pipeline's own ids: the target grid with t = 0, then the reference grid with t = 1."""
    ids = [FluxKontextPipeline._prepare_latent_image_ids(1, *TARGET, "cpu", torch.float32)]
    if reference:
        ids.append(FluxKontextPipeline._prepare_latent_image_ids(1, *REFERENCE, "cpu", torch.float32))
        ids[1][..., 0] = 1
    return torch.cat(ids)


def inputs(batch, reference):
    """Returns the transformer's input tensors, by argument name."""
    ids = image_ids(reference)
    suffix = f"{batch}.{len(ids)}"
    return {
        "hidden_states": synthetic.draw(f"input.hidden.{suffix}", [batch, len(ids), BASE["in_channels"]]),
        "encoder_hidden_states": synthetic.draw(f"input.text.{batch}", [batch, TEXT, BASE["joint_attention_dim"]]),
        "pooled_projections": synthetic.draw(f"input.pooled.{batch}", [batch, BASE["pooled_projection_dim"]]),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3),
    }


def watch(model, states):
    """Registers hooks that record the inner states of the next run in `states`."""

    def keep(*names):
        def hook(_module, _args, output):
            outputs = output if isinstance(output, tuple) else (output,)
            states.update({name: value.clone() for name, value in zip(names, outputs, strict=True)})

        return hook

    def before_norm_out(_module, args):
        states["norm_out_input"] = args[0].clone()

    return [
        model.pos_embed.register_forward_hook(keep("rope_cos", "rope_sin")),
        model.time_text_embed.register_forward_hook(keep("temb")),
        model.transformer_blocks[0].register_forward_hook(keep("double0.text", "double0.image")),
        model.single_transformer_blocks[0].register_forward_hook(keep("single0.text", "single0.image")),
        model.norm_out.register_forward_pre_hook(before_norm_out),
    ]


def run(name):
    """`CASE.{hidden_states,...,timestep,guidance}` in, `CASE.output` and the inner states out."""
    config, timestep, guidance, reference = CASES[name]
    model = synthetic.fill_(FluxTransformer2DModel(**CONFIGS[config]), SEED)
    given = inputs(len(timestep), reference) | {"timestep": torch.tensor(timestep)}
    if guidance is not None:
        given["guidance"] = torch.tensor(guidance)
    states = {}
    watch(model, states)
    states["output"] = model(**given, return_dict=False)[0]
    return {f"{name}.{key}": value for key, value in (given | states).items()}


def flux_rope():
    """`flux_rope.{ids,cos,sin}`: the real axes at near and far positions."""
    rows = [(0, 0, 0), (0, 0, 1), (1, 1, 0), (0, 5, 127), (1, 63, 64), (1, 127, 127), (0, 97, 3), (0, 300, 511), (2, 255, 256), (3, 1000, 7)]
    ids = torch.tensor(rows, dtype=torch.float32)
    cos, sin = FluxPosEmbed(10000, FLUX_AXES)(ids)
    return {"flux_rope.ids": ids, "flux_rope.cos": cos, "flux_rope.sin": sin}


def time_projection():
    """`time_projection.{t,embedding}`: the sinusoidal embedding of t on the 0-1000 scale, [n, 256]."""
    t = torch.tensor([0.0, 0.5, 1.0, 37.0, 370.0, 803.25, 999.0, 1000.0, 2500.0, 3500.0])
    return {"time_projection.t": t, "time_projection.embedding": get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=0)}


@torch.no_grad()
def make():
    tensors = flux_rope() | time_projection()
    for name in CASES:
        tensors |= run(name)
    grids = {"target": TARGET, "reference": REFERENCE, "text": TEXT}
    fixture_io.save("dit", tensors, seed=SEED, grids=grids, cases=CASES, flux_axes=FLUX_AXES, **CONFIGS)
