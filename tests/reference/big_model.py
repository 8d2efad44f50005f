"""Writes a model of FLUX.1 Kontext's real size with random weights, for measuring memory and time.

    python big_model.py OUT --tokenizers shared/assets/tokenizers
    python big_model.py OUT --only transformer --transformer Q4_K

The transformer and T5's encoder as GGUF, CLIP and the autoencoder as safetensors, in the single files' names. All
weights come from small pools of random values with the deviations of synthetic.py, so that activations stay finite.
GGUF files are written one tensor at a time, with some 0.9 GB in memory including the packages. --tokenizers is a
folder with t5/tokenizer.json and clip/{vocab.json,merges.txt}; without it no tokenizers are written.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import bfl_layout
import gguf_files
from gguf_files import Type
from parts.vae import FLUX as VAE

# Values of the published configs that differ from the classes' defaults.
TRANSFORMER = {"guidance_embeds": True}
T5 = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
CLIP = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}  # fmt: skip
AUTOENCODER = VAE | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 1024}
KINDS = [kind.name for kind in (*gguf_files.SCALES, Type.F16, Type.BF16)]
POOL = 1 << 22  # values in a pool of weights of one deviation


class Pools:
    """Random weights sliced from pools, one for each type and number of inputs."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.pools = {}

    def _pool(self, kind, inputs):
        if kind in gguf_files.SCALES:
            per_block = gguf_files.gguf.GGML_QUANT_SIZES[kind][0]
            return gguf_files.random_blocks(kind, POOL // per_block, inputs**-0.5, self.rng).reshape(-1)
        values = self.rng.standard_normal(POOL, dtype=np.float32) * inputs**-0.5
        return gguf_files.gguf.quantize(values, kind).reshape(-1)

    def cut(self, kind, shape):
        """Returns a flat array of the type's bytes or values for `shape`, from its own offset in the pool."""
        key = kind, math.prod(shape[1:])
        if key not in self.pools:
            self.pools[key] = self._pool(*key)
        pool = self.pools[key]
        size = math.prod(gguf_files.gguf.quant_shape_to_byte_shape(shape, kind)) // pool.itemsize
        unit = gguf_files.gguf.GGML_QUANT_SIZES[kind][1] // pool.itemsize if pool.dtype == np.uint8 else 1
        start = int(self.rng.integers(len(pool) // unit)) * unit
        repeats = -(-(start + size) // len(pool))
        return np.concatenate([pool] * repeats)[start : start + size].copy()

    def make(self, name, tensor, kind):
        """Returns the stored data of a tensor from its shape: matrices from the pools, norms near 1, biases near 0."""
        if tensor.ndim > 1:
            return self.cut(kind, tuple(tensor.shape))
        return self.vector(name, len(tensor))

    def vector(self, name, length):
        norm = name.endswith(("scale", "weight"))
        return (norm + (0.1 if norm else 0.02) * self.rng.standard_normal(length)).astype(np.float32)

    def tensor(self, name, like, dtype):
        """Returns a tensor in the shape of `like`."""
        if like.ndim < 2:
            return torch.from_numpy(self.vector(name, len(like))).to(dtype)
        return torch.from_numpy(self.cut(Type.F32, tuple(like.shape))).reshape(like.shape).to(dtype)


def sizes(build):
    """Returns the state dict of a model without values."""
    with torch.device("meta"):
        return {name: tensor for name, tensor in build().state_dict().items() if tensor.is_floating_point()}


def write_transformer(args, pools):
    kind = Type[args.transformer]
    state = bfl_layout.transformer(sizes(lambda: FluxTransformer2DModel(**TRANSFORMER)))
    gguf_files.flux(args.out / f"flux1-kontext-{kind.name}.gguf", kind, state, pools.make)


def write_t5(args, pools):
    kind, config = Type[args.t5], T5Config(**T5)
    state = sizes(lambda: T5EncoderModel(config))
    pieces = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    if args.tokenizers:
        pieces = json.loads((args.tokenizers / "t5" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    gguf_files.t5(args.out / f"t5xxl-{kind.name}.gguf", kind, state, config, pieces, pools.make)


def write_safetensors(path, state, pools, dtype):
    safetensors.torch.save_file({name: pools.tensor(name, like, dtype) for name, like in state.items()}, path)


def write_clip(args, pools):
    state = sizes(lambda: CLIPTextModel(CLIPTextConfig(**CLIP)))
    write_safetensors(args.out / "clip_l.safetensors", state, pools, torch.bfloat16)


def write_vae(args, pools):
    state = bfl_layout.vae(sizes(lambda: AutoencoderKL(**AUTOENCODER)))
    write_safetensors(args.out / "ae.safetensors", state, pools, getattr(torch, args.vae))


def write_tokenizers(args, _pools):
    for source, target in (("clip", "tokenizer"), ("t5", "tokenizer_2")) if args.tokenizers else ():
        (args.out / target).mkdir(exist_ok=True)
        for path in (args.tokenizers / source).iterdir():
            shutil.copyfile(path, args.out / target / path.name)


WRITERS = {
    "transformer": write_transformer,
    "t5": write_t5,
    "clip": write_clip,
    "vae": write_vae,
    "tokenizers": write_tokenizers,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", action="append", choices=WRITERS, help="only this part; may be repeated")
    parser.add_argument("--transformer", choices=KINDS, default="Q4_0", help="type of the transformer's matrices")
    parser.add_argument("--t5", choices=KINDS, default="Q8_0", help="type of T5's matrices")
    parser.add_argument("--vae", choices=["bfloat16", "float32"], default="bfloat16", help="dtype of the autoencoder")
    parser.add_argument("--tokenizers", type=Path, help="folder with t5/ and clip/")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for part in args.only or WRITERS:
        WRITERS[part](args, Pools(args.seed + list(WRITERS).index(part)))
        print(f"{part}: written", flush=True)


if __name__ == "__main__":
    main()
