"""The original names: a diffusers pipeline written as Black Forest Labs' and ComfyUI's single files.

The inverse of diffusers' scripts/convert_flux_to_diffusers.py and of convert_ldm_vae_checkpoint in
loaders/single_file_utils.py; names of black-forest-labs/flux@802fb47 src/flux/{model,modules/layers,modules/autoencoder}.py.
"""

import re

import safetensors.torch
import torch

EMBEDDERS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
DOUBLE_FUSED = {
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
}
DOUBLE_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
SINGLE_FUSED = {"linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]}
SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}


def _blocks(source, old, new, plain, fused, norms):
    """Moves the tensors of all blocks under `old.N.` out of `source`, renamed to `new.N.`."""
    out = {}
    for i in sorted({int(name.split(".")[1]) for name in source if name.startswith(f"{old}.")}):
        take = lambda name: source.pop(f"{old}.{i}.{name}")  # noqa: B023, E731
        for kind in ("weight", "bias"):
            out |= {f"{new}.{i}.{to}.{kind}": take(f"{name}.{kind}") for name, to in plain.items()}
            out |= {f"{new}.{i}.{to}.{kind}": torch.cat([take(f"{n}.{kind}") for n in names]) for to, names in fused.items()}
        out |= {f"{new}.{i}.{to}.scale": take(f"{name}.weight") for name, to in norms.items()}
    return out


def transformer(state):
    """Returns transformer weights in BFL's names; raises ValueError for a name without a counterpart."""
    source = dict(state)
    out = _blocks(source, "transformer_blocks", "double_blocks", DOUBLE, DOUBLE_FUSED, DOUBLE_NORMS)
    out |= _blocks(source, "single_transformer_blocks", "single_blocks", SINGLE, SINGLE_FUSED, SINGLE_NORMS)
    for kind in ("weight", "bias"):
        scale, shift = source.pop(f"norm_out.linear.{kind}").chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for name in list(source):
        module, kind = name.rsplit(".", 1)
        if module not in EMBEDDERS:
            raise ValueError(f"no BFL name for {name}")
        out[f"{EMBEDDERS[module]}.{kind}"] = source.pop(name)
    return out


def _vae_name(name, levels):
    """Returns the original name of one VAE tensor; `decoder.up` counts from the finest level."""
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for old, new in [
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("resnets", "block"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ]:
        name = name.replace(old, new)
    return name


def vae(state):
    """Returns autoencoder weights in the original names, the attention's linear layers as 1x1 convolutions."""
    levels = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("decoder.up_blocks"))
    out = {}
    for old, tensor in state.items():
        name = _vae_name(old, levels)
        is_linear = "mid.attn_1" in name and tensor.ndim == 2
        out[name] = tensor[:, :, None, None] if is_linear else tensor
    return out


def transformer_to_diffusers(state, like):
    """Inverse of `transformer`, found by tracing each row's number; `like` is a state dict in diffusers' names."""
    numbers, end = {}, 0
    for name, tensor in like.items():
        numbers[name] = torch.arange(end, end + len(tensor))
        end += len(tensor)
    out = {}
    for new, found in transformer(numbers).items():
        for name, rows in numbers.items():
            here = (found >= rows[0]) & (found <= rows[-1])
            if here.any():
                out[name] = state[new][here][found[here].argsort()]
    return out


def vae_to_diffusers(state, like):
    """Inverse of `vae`; `like` is a state dict in diffusers' names."""
    return {old: state[new].reshape(like[old].shape) for old, new in zip(like, vae(like), strict=True)}


def write(pipe, folder):
    """Writes flux1-kontext, ae, clip_l and t5xxl `.safetensors` and both tokenizers into `folder`.

    t5xxl holds the token embedding under both of its names, as the published file does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "flux1-kontext": transformer(pipe.transformer.state_dict()),
        "ae": vae(pipe.vae.state_dict()),
        "clip_l": pipe.text_encoder.state_dict(),
        "t5xxl": pipe.text_encoder_2.state_dict(),
    }
    for name, state in files.items():
        state = {key: tensor.contiguous().clone() for key, tensor in state.items()}
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    pipe.tokenizer_2.save_pretrained(folder / "tokenizer_2")
