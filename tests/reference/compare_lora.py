"""Loads a LoRA that our trainer wrote into diffusers' FluxKontextPipeline, and compares its image with ours.

    cargo build --release --examples
    python tests/reference/compare_lora.py --model models/kontext-emoji --lora target/finetune/lora.safetensors

f32 on the CPU, the same starting noise. Prints the relative L2 error of the final latents, with the adapters applied at
run time and fused with the weights; exits 1 if one is above 1e-3, or if the LoRA changes nothing.
"""

import argparse
import json
import sys
from pathlib import Path

import safetensors.torch
import torch
from diffusers import FluxKontextPipeline

import compare_pipeline
import diffusers_runs as reference

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-3
CASE = {"image": (64, 64), "prompt": "add a red frame", "width": 64, "height": 64, "max_area": 64 * 64, "steps": 4, "guidance": 2.5}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="diffusers folder of the model")
    parser.add_argument("--lora", type=Path, required=True, help="safetensors file of the LoRA")
    parser.add_argument("--save", type=Path, default=ROOT / "target" / "compare-lora", help="folder for all files")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target" / "release" / "examples")
    return parser.parse_args()


def main():
    args = parse()
    defaults = args.model / "kontext.json"
    case = dict(CASE)
    if defaults.exists():
        # Settings that diffusers cannot read: the prompt's length, and a reference not resized to a
        # megapixel.
        case["call"] = {"max_sequence_length": json.loads(defaults.read_text())["max_sequence_length"], "_auto_resize": False}
    pipe = FluxKontextPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    finals = {}
    for name in ("without", "with"):
        if name == "with":
            pipe.load_lora_weights(args.lora.parent, weight_name=args.lora.name)
        reference.run(pipe, case, args.save / name)
        finals[name] = safetensors.torch.load_file(args.save / name / "diffusers.safetensors")["final"]
    change = compare_pipeline.relative_error(finals["without"], finals["with"])
    print(f"the LoRA moves the latents by {change:.2e}")
    worst = 0.0
    for name, flags in [("without", []), ("with", ["--lora", args.lora]), ("with", ["--lora", args.lora, "--fuse-loras"])]:
        folder, dump = args.save / name, args.save / "ours.safetensors"
        more = ["--dtype", "f32", "--seed", 0, "--noise", folder / "noise.safetensors", "--image", folder / "image.png"]
        more += ["--dump", dump, "--out", args.save / "ours.png", *flags]
        if not compare_pipeline.run_ours(compare_pipeline.command(args, args.model, case, *more)):
            return 1
        error = compare_pipeline.relative_error(finals[name], safetensors.torch.load_file(dump)["final"])
        worst = max(worst, error)
        print(f"{name} LoRA{', fused' if len(flags) > 2 else ''}: {error:.2e}")
    return 0 if worst <= TOLERANCE < change else 1


if __name__ == "__main__":
    sys.exit(main())
