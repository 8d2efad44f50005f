"""kept.safetensors: three-step runs of FluxTransformer2DModel in which later steps read keys and values of the first.

An attention processor keeps the keys and values (after their norm and rotation) of a full step; reduced steps run text
and target, or text and some rows of the target, and attend to the kept ones of all other tokens.
"""

import math

import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb

import fixture_io
import synthetic

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": [4, 6, 6],
    "num_layers": 2,
    "num_single_layers": 2,
    "in_channels": 16,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "guidance_embeds": True,
}
SEED = 32
TARGET, REFERENCES, TEXT = (4, 5), [(4, 5), (3, 2)], 6
SIGMAS = [1.0, 0.7, 0.3, 0.0]
ROWS = [3, 4, 8, 9, 14]


class Kept:
    """Attention of one block, which keeps keys and values of full steps and joins them in others."""

    def __init__(self):
        self.kept = None
        self.absent = None  # places of the kept tokens in the whole sequence; None in a full step

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        heads = lambda x: x.unflatten(-1, (attn.heads, -1))
        q, k, v = (heads(layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        text = 0
        if encoder_hidden_states is not None:
            text = encoder_hidden_states.shape[1]
            added = (heads(layer(encoder_hidden_states)) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
            text_q, text_k, text_v = added
            q = torch.cat([attn.norm_added_q(text_q), q], dim=1)
            k = torch.cat([attn.norm_added_k(text_k), k], dim=1)
            v = torch.cat([text_v, v], dim=1)
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        if self.absent is None:
            self.kept = k, v
        else:
            k, v = (torch.cat([x, kept[:, self.absent]], dim=1) for x, kept in zip((k, v), self.kept, strict=True))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
        out = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
        if text == 0:
            return out
        return attn.to_out[0](out[:, text:]), attn.to_add_out(out[:, :text])


def run(name, rows):
    """`NAME.v0` to `NAME.v2`, the velocities, and `NAME.latents` after the last step."""
    model = synthetic.fill_(FluxTransformer2DModel(**CONFIG), SEED)
    processors = {key: Kept() for key in model.attn_processors}
    model.set_attn_processor(dict(processors))
    grid = lambda shape: FluxKontextPipeline._prepare_latent_image_ids(1, *shape, "cpu", torch.float32)
    ids = [grid(TARGET)]
    for index, shape in enumerate(REFERENCES):
        ids.append(grid(shape))
        ids[-1][..., 0] = index + 1
    ids = torch.cat(ids)
    target = TARGET[0] * TARGET[1]
    hidden = synthetic.draw("kept.hidden", [1, len(ids), CONFIG["in_channels"]])
    latents, context = hidden[:, :target], hidden[:, target:]
    inputs = {
        "encoder_hidden_states": synthetic.draw("kept.text", [1, TEXT, CONFIG["joint_attention_dim"]]),
        "pooled_projections": synthetic.draw("kept.pooled", [1, CONFIG["pooled_projection_dim"]]),
        "txt_ids": torch.zeros(TEXT, 3),
        "guidance": torch.tensor([2.5]),
    }
    velocity, tensors = None, {}
    for step, (sigma, following) in enumerate(zip(SIGMAS, SIGMAS[1:])):
        present = torch.arange(len(ids)) if step == 0 else torch.tensor(rows)
        absent = [place for place in range(len(ids)) if place not in present.tolist()]
        for processor in processors.values():
            processor.absent = None if step == 0 else torch.tensor([TEXT + place for place in absent])
        x = torch.cat([latents, context], dim=1)[:, present]
        out = model(x, timestep=torch.tensor([sigma]), img_ids=ids[present], return_dict=False, **inputs)[0]
        if step == 0:
            velocity = out[:, :target]
        else:  # The velocity of rows that are not computed is the full step's.
            velocity = velocity.clone()
            velocity[:, present] = out
        latents = latents + (following - sigma) * velocity
        tensors[f"{name}.v{step}"] = velocity
    return tensors | {f"{name}.latents": latents, "hidden": hidden, "ids": ids}


@torch.no_grad()
def make():
    tensors = run("references", range(TARGET[0] * TARGET[1])) | run("region", ROWS)
    tensors |= {"text": synthetic.draw("kept.text", [1, TEXT, CONFIG["joint_attention_dim"]])}
    tensors |= {"pooled": synthetic.draw("kept.pooled", [1, CONFIG["pooled_projection_dim"]])}
    grids = {"target": TARGET, "references": REFERENCES, "text": TEXT}
    fixture_io.save("kept", tensors, seed=SEED, grids=grids, sigmas=SIGMAS, rows=ROWS, **CONFIG)
