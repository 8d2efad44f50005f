"""Writes one tiny random checkpoint in every form that FLUX.1 is published in, by the other programs' own writers.

    python forms.py OUT                     every form
    python forms.py OUT --form gguf-Q4_K    only this one; may be repeated
    python forms.py --list

OUT/FORM/model is the folder for loaders: the form's own part, and links to the other parts and the tokenizers.
OUT/FORM/reference holds a safetensors file for each part whose values the form changes, `transformer`,
`text_encoder_2`, `text_encoder` and `vae`: the f32 values it encodes, under diffusers' names, as the writing program
dequantises them. OUT/base holds the checkpoint itself as a diffusers folder and as single files.

GGUF files of the K-quants and IQ4 hold separately drawn random blocks, since the `gguf` package cannot quantise to
these types.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import safetensors.torch
import torch
from diffusers import FluxKontextPipeline

import bfl_layout
import bnb_models
import checkpoint
import comfy_fp8
import gguf_files

BINARIES = Path(__file__).resolve().parents[2] / "target" / "release" / "examples"
PARTS = ("transformer", "text_encoder_2", "text_encoder", "vae")
FILES = {"transformer": "flux1-kontext", "text_encoder_2": "t5xxl", "text_encoder": "clip_l", "vae": "ae"}
PREFIXES = {
    "transformer": "model.diffusion_model.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "vae": "vae.",
}
SHARD = "2MB"
KEPT = {"kontext.json": '{"sizes": [[128, 128]]}\n'}  # lets reference images be smaller than a megapixel


class Base:
    """The checkpoint from which all forms are made, in f32."""

    def __init__(self, folder):
        self.folder = folder
        if not (folder / "bfl").exists():
            checkpoint.write(checkpoint.parse([str(folder), "--preset", "blocks", "--layout", "both"]))
        self.pipe = self.load(torch.float32)
        self.states = {part: self._state(part) for part in PARTS}

    def _state(self, part):
        return {name: tensor.clone() for name, tensor in getattr(self.pipe, part).state_dict().items()}

    def load(self, dtype):
        return FluxKontextPipeline.from_pretrained(self.folder / "diffusers", torch_dtype=dtype)

    def single(self, part):
        """Returns a part's state under the names of the single files."""
        renamed = {"transformer": bfl_layout.transformer, "vae": bfl_layout.vae}.get(part, dict)
        return {name: tensor.contiguous().clone() for name, tensor in renamed(self.states[part]).items()}

    def named(self, part, state):
        """Converts a state from the names of the single files to diffusers'."""
        if part == "transformer":
            return bfl_layout.transformer_to_diffusers(state, self.states[part])
        return bfl_layout.vae_to_diffusers(state, self.states[part]) if part == "vae" else state


def link(source, target):
    """Creates a hard link to a file, or to each file of a folder; a copy where links are impossible."""
    if source.is_dir():
        for inner in source.iterdir():
            link(inner, target / inner.name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def link_others(base, layout, folder, replaced):
    """Links all of the base's files except those of the parts `replaced`."""
    names = replaced if layout == "diffusers" else [f"{FILES[part]}.safetensors" for part in replaced]
    for path in (base.folder / layout).iterdir():
        if path.name not in names:
            link(path, folder / path.name)


def save(path, state, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata or None)


def values_of(pipe):
    return {part: {name: tensor.float() for name, tensor in getattr(pipe, part).state_dict().items()} for part in PARTS}


def diffusers_folder(base, folder, dtype=torch.float32, variant=None, shard=None):
    """Writes with diffusers' save_pretrained."""
    pipe = base.load(dtype)
    checkpoint.write_diffusers(pipe, folder, shard, variant)
    return values_of(pipe)


def two_variants(base, folder):
    """Writes the f32 files and the variant fp16 next to them: loading without a variant gives f32."""
    base.load(torch.float32).save_pretrained(folder)
    half = base.load(torch.float16)
    for part in PARTS:
        getattr(half, part).save_pretrained(folder / part, variant="fp16")
    return {}


def single_files(base, folder, store, parts=PARTS):
    """Writes one file for each part; `store(part, state)` gives a file's tensors and its metadata."""
    link_others(base, "bfl", folder, parts)
    values = {}
    for part in parts:
        state, metadata = store(part, base.single(part))
        save(folder / f"{FILES[part]}.safetensors", state, metadata)
        values[part] = base.named(part, comfy_fp8.dequantised(state))
    return values


def all_in_one(base, folder, store):
    """Writes one file with a prefix for each part, like ComfyUI's checkpoints, including their additional tensors."""
    for tokenizer in ("tokenizer", "tokenizer_2"):
        link(base.folder / "bfl" / tokenizer, folder / tokenizer)
    everything, values = {}, {}
    for part, prefix in PREFIXES.items():
        state = base.single(part)
        state.pop("encoder.embed_tokens.weight", None)
        state, _ = store(part, state)
        everything |= {prefix + name: tensor for name, tensor in state.items()}
        state = comfy_fp8.dequantised(state)
        if part == "text_encoder_2":
            state["encoder.embed_tokens.weight"] = state["shared.weight"]
        values[part] = base.named(part, state)
    width = base.states["text_encoder"]["text_model.final_layer_norm.weight"].numel()
    everything["text_encoders.clip_l.transformer.text_projection.weight"] = torch.eye(width)
    everything |= {f"text_encoders.{name}.logit_scale": torch.tensor(4.6055) for name in ("clip_l", "t5xxl")}
    save(folder / "flux1-kontext-all.safetensors", everything)
    return values


def in_dtype(dtype, _part, state):
    return {name: tensor.to(dtype) for name, tensor in state.items()}, None


def fp8_and_f16(dtype, part, state):
    """Converts the large parts to fp8, CLIP to f16 and the autoencoder to bf16."""
    return in_dtype({"text_encoder": torch.float16, "vae": torch.bfloat16}.get(part, dtype), part, state)


def scaled_old(dtype, part, state):
    if part not in ("transformer", "text_encoder_2"):
        return fp8_and_f16(dtype, part, state)
    if part == "transformer":
        return comfy_fp8.scaled_old(state, dtype, torch.bfloat16), None
    return comfy_fp8.scaled_old(state, dtype, torch.float16, marker=2), None


def scaled_new(name, tensors, _part, state):
    return comfy_fp8.scaled_new(state, name, torch.bfloat16, tensors)


def gguf_folder(base, folder, kind):
    """Writes the transformer and T5 in one GGUF type."""
    kind = gguf_files.Type[kind]
    link_others(base, "bfl", folder, ("transformer", "text_encoder_2"))
    paths = {part: folder / f"{FILES[part]}-{kind.name}.gguf" for part in ("transformer", "text_encoder_2")}
    gguf_files.flux(paths["transformer"], kind, base.single("transformer"), gguf_files.stored)
    t5, config = base.states["text_encoder_2"], base.pipe.text_encoder_2.config
    gguf_files.t5(paths["text_encoder_2"], kind, t5, config, unigram(base.pipe.tokenizer_2), gguf_files.stored)
    return {
        "transformer": base.named("transformer", gguf_files.read(paths["transformer"])),
        "text_encoder_2": gguf_files.read_t5(paths["text_encoder_2"], base.states["text_encoder_2"]),
    }


def unigram(tokenizer):
    """Returns [text, score] of each piece of T5's tokenizer."""
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]


def bitsandbytes_folder(base, folder, settings, dtype=torch.float32):
    """Writes the transformer and T5 quantised by bitsandbytes, in a diffusers folder."""
    link_others(base, "diffusers", folder, ("transformer", "text_encoder_2"))
    source, values = base.folder / "diffusers", {}
    for part, quantise in (("transformer", bnb_models.save_transformer), ("text_encoder_2", bnb_models.save_t5)):
        quantise(settings, source / part, folder / part, dtype)
        values[part] = bnb_models.read(folder / part)
    values["text_encoder_2"]["encoder.embed_tokens.weight"] = values["text_encoder_2"]["shared.weight"]
    return values


def quantize(model, part, to, out):
    """Runs our own `quantize` example."""
    given = {"model": model, "part": part, "to": to, "out": out}
    flags = [text for key, value in given.items() for text in (f"--{key}", str(value))]
    subprocess.run([str(BINARIES / "quantize"), *flags], check=True, capture_output=True)


def our_files(base, folder, to):
    """Writes the transformer and T5 with our `quantize` example, read by the other programs' readers."""
    link_others(base, "bfl", folder, ("transformer", "text_encoder_2"))
    ending = "safetensors" if to == "fp8" else "gguf"
    paths = {}
    for part, ours in (("transformer", "transformer"), ("text_encoder_2", "t5")):
        paths[part] = folder / f"{FILES[part]}-{to}.{ending}"
        quantize(base.folder / "bfl", ours, to, paths[part])
    if to == "fp8":
        states = {part: comfy_fp8.dequantised(safetensors.torch.load_file(path)) for part, path in paths.items()}
        values = {part: base.named(part, state) for part, state in states.items()}
        values["text_encoder_2"]["encoder.embed_tokens.weight"] = values["text_encoder_2"]["shared.weight"]
        return values
    return {
        "transformer": base.named("transformer", gguf_files.read(paths["transformer"])),
        "text_encoder_2": gguf_files.read_t5(paths["text_encoder_2"], base.states["text_encoder_2"]),
    }


def our_int8_folders(base, folder):
    """Writes both in int8 with our `quantize` example, loaded by diffusers and transformers."""
    link_others(base, "diffusers", folder, ("transformer", "text_encoder_2"))
    quantize(base.folder / "bfl", "transformer", "int8", folder / "transformer")
    quantize(base.folder / "bfl", "t5", "int8", folder / "text_encoder_2")
    return {
        "transformer": bnb_models.load_transformer(folder / "transformer"),
        "text_encoder_2": bnb_models.load_t5(folder / "text_encoder_2"),
    }


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def _forms():
    """Returns each form's writer and its arguments after base and folder; the writer returns the parts' values."""
    partial, both = functools.partial, ("transformer", "text_encoder_2")
    stores = {
        "fp8-e4m3fn": partial(in_dtype, E4M3),
        "fp8-e5m2": partial(in_dtype, E5M2),
        "fp8-scaled-old": partial(scaled_old, E4M3),
        "fp8-scaled-old-e5m2": partial(scaled_old, E5M2),
        "fp8-scaled-new": partial(scaled_new, "float8_e4m3fn", True),
        "fp8-scaled-new-e5m2": partial(scaled_new, "float8_e5m2", True),
        "fp8-scaled-header": partial(scaled_new, "float8_e4m3fn", False),
    }
    bf16 = partial(in_dtype, torch.bfloat16)
    return {
        "diffusers-sharded": (diffusers_folder, {"shard": SHARD}),
        "diffusers-fp16": (diffusers_folder, {"dtype": torch.float16, "variant": "fp16"}),
        "diffusers-bf16-sharded": (diffusers_folder, {"dtype": torch.bfloat16, "variant": "bf16", "shard": SHARD}),
        "diffusers-two-variants": (two_variants, {}),
        "bfl-f32": (single_files, {"store": partial(in_dtype, torch.float32)}),
        "bfl-bf16": (single_files, {"store": bf16}),
        **{name: (single_files, {"store": store, "parts": both}) for name, store in stores.items()},
        "all-in-one-bf16": (all_in_one, {"store": bf16}),
        "all-in-one-fp8": (all_in_one, {"store": partial(fp8_and_f16, E4M3)}),
        "all-in-one-fp8-scaled": (all_in_one, {"store": partial(scaled_old, E4M3)}),
        **{f"gguf-{kind}": (gguf_folder, {"kind": kind}) for kind in gguf_files.TYPES},
        **{f"bnb-{settings}": (bitsandbytes_folder, {"settings": settings}) for settings in bnb_models.SETTINGS},
        **{f"ours-{to}": (our_files, {"to": to}) for to in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "fp8")},
        "ours-int8": (our_int8_folders, {}),
        "bnb-nf4-double-bf16": (bitsandbytes_folder, {"settings": "nf4-double", "dtype": torch.bfloat16}),
    }


FORMS = _forms()


def write(name, base, folder):
    """Writes one form: `folder`/model and `folder`/reference."""
    shutil.rmtree(folder, ignore_errors=True)
    model = folder / "model"
    model.mkdir(parents=True)
    make, given = FORMS[name]
    values = make(base, model, **given)
    for file, text in KEPT.items():
        (model / file).write_text(text)
    for part, state in values.items():
        if state.keys() != base.states[part].keys():
            raise ValueError(f"{name}, {part}: not the same tensors: {sorted(state.keys() ^ base.states[part].keys())}")
        save(folder / "reference" / f"{part}.safetensors", {key: tensor.clone() for key, tensor in state.items()})


def load_reference(base, folder):
    """Returns the base's pipeline with the values that the form in `folder` changes."""
    for part in PARTS:
        path = folder / "reference" / f"{part}.safetensors"
        state = safetensors.torch.load_file(path) if path.exists() else base.states[part]
        getattr(base.pipe, part).load_state_dict(state)
    return base.pipe


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--form", action="append", choices=FORMS, help="only this form; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the names of the forms and stop")
    args = parser.parse_args()
    if args.list or not args.out:
        print("\n".join(FORMS))
        return
    base = Base(args.out / "base")
    for name in args.form or FORMS:
        write(name, base, args.out / name)
        print(f"{name}: written", flush=True)


if __name__ == "__main__":
    main()
