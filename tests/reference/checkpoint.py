"""Writes a tiny random FLUX.1 Kontext checkpoint with everything a real one has.

    python checkpoint.py OUT                              a diffusers folder, heads of an unusual width
    python checkpoint.py OUT --preset standard --layout both   OUT/diffusers and OUT/bfl, the same weights

The weights follow the rule in synthetic.py under --seed, by their diffusers names.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import bfl_layout
import tiny_tokenizers
from parts.schedule import DEV, SCHNELL
from parts.vae import FLUX as VAE
from synthetic import fill_

PRESETS = {
    # Sizes cannot be inferred from the tensors: they must come from the configs.
    "odd": {
        "dit": {"num_attention_heads": 3, "attention_head_dim": 18, "axes_dims_rope": [4, 6, 8]},
        "t5": {"d_model": 24, "d_kv": 8, "num_heads": 5, "d_ff": 64},
        "clip": {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 60},
        "vae": {"block_out_channels": [8, 16, 16, 24], "norm_num_groups": 4},
    },
    # Sizes assumed by loaders of the original layout: 128-wide heads with axes 16, 56, 56, T5 and CLIP heads
    # of 64, an autoencoder with multipliers 1, 2, 4, 4 and 32 groups.
    "standard": {
        "dit": {"num_attention_heads": 2, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]},
        "t5": {"d_model": 48, "d_kv": 64, "num_heads": 2, "d_ff": 96},
        "clip": {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192},
        "vae": {"block_out_channels": [32, 64, 128, 128], "norm_num_groups": 32},
    },
    # As `standard`, but every matrix of a block has a multiple of 256 columns, as GGUF's larger blocks
    # require.
    "blocks": {
        "dit": {"num_attention_heads": 2, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]},
        "t5": {"d_model": 256, "d_kv": 64, "num_heads": 4, "d_ff": 512},
        "clip": {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512},
        "vae": {"block_out_channels": [32, 64, 128, 128], "norm_num_groups": 32},
    },
}


def clip_encoder(sizes, vocab_size, seed):
    """Creates CLIP with the ids of FLUX.1's published config, whose eos_token_id 2 selects the highest id instead."""
    config = CLIPTextConfig(
        vocab_size=vocab_size, num_hidden_layers=2, max_position_embeddings=77, hidden_act="quick_gelu",
        projection_dim=sizes["hidden_size"], bos_token_id=0, eos_token_id=2, pad_token_id=1, **sizes,
    )  # fmt: skip
    return fill_(CLIPTextModel(config), seed)


def t5_encoder(sizes, vocab_size, seed):
    """Creates T5 v1.1 with a few more rows than the tokenizer has entries, like the published model."""
    config = T5Config(vocab_size=vocab_size + 8, num_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **sizes)
    return fill_(T5EncoderModel(config), seed)


def transformer(args, joint_dim, pooled_dim):
    sizes = dict(PRESETS[args.preset]["dit"])
    sizes |= {key: value for key, value in [("num_attention_heads", args.heads), ("attention_head_dim", args.head_dim), ("axes_dims_rope", args.axes)] if value}
    model = FluxTransformer2DModel(
        num_layers=args.layers, num_single_layers=args.single_layers, in_channels=64, joint_attention_dim=joint_dim,
        pooled_projection_dim=pooled_dim, guidance_embeds=args.guidance, **sizes,
    )  # fmt: skip
    return fill_(model, args.seed)


def build(args):
    """Creates the pipeline; one without guidance has FLUX.1-schnell's schedule, like the published ones."""
    preset = PRESETS[args.preset]
    with tempfile.TemporaryDirectory() as folder:
        clip_tokenizer = tiny_tokenizers.clip(Path(folder))
    t5_tokenizer = tiny_tokenizers.t5()
    pipe = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(DEV if args.guidance else SCHNELL),
        vae=fill_(AutoencoderKL(**(VAE | preset["vae"])), args.seed),
        text_encoder=clip_encoder(preset["clip"], len(clip_tokenizer), args.seed),
        tokenizer=clip_tokenizer,
        text_encoder_2=t5_encoder(preset["t5"], len(t5_tokenizer), args.seed),
        tokenizer_2=t5_tokenizer,
        transformer=transformer(args, preset["t5"]["d_model"], preset["clip"]["hidden_size"]),
    )
    return pipe.to(dtype=getattr(torch, args.dtype))


def write_diffusers(pipe, folder, shard=None, variant=None):
    """Writes a diffusers folder; with `shard` the two large models are split like the published ones."""
    pipe.save_pretrained(folder, variant=variant)
    for name in ("transformer", "text_encoder_2") if shard else ():
        for single in (folder / name).glob("*.safetensors"):
            single.unlink()
        getattr(pipe, name).save_pretrained(folder / name, max_shard_size=shard, variant=variant)


def write(args):
    """Writes the requested layouts; `both` writes them side by side below OUT."""
    pipe = build(args)
    both = args.layout == "both"
    if args.layout in ("diffusers", "both"):
        write_diffusers(pipe, args.out / "diffusers" if both else args.out, args.shard)
    if args.layout in ("bfl", "both"):
        bfl_layout.write(pipe, args.out / "bfl" if both else args.out)


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="odd")
    parser.add_argument("--layout", choices=["diffusers", "bfl", "both"], default="diffusers")
    parser.add_argument("--heads", type=int, help="attention heads of the transformer")
    parser.add_argument("--head-dim", type=int, help="width of a head; the sum of --axes")
    parser.add_argument("--axes", type=lambda text: [int(x) for x in text.split(",")], help="RoPE axes, such as 4,6,8")
    parser.add_argument("--layers", type=int, default=2, help="double-stream blocks")
    parser.add_argument("--single-layers", type=int, default=2, help="single-stream blocks")
    parser.add_argument("--guidance", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", help="largest file of the transformer and of T5, such as 500KB")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    return parser.parse_args(argv)


if __name__ == "__main__":
    write(parse())
