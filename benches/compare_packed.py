"""Times one block with f32, bf16 and packed weights, and diffusers' block in f32, in one run; prints ratios.

    python benches/compare_packed.py --python PYTHON_WITH_DIFFUSERS [--rounds 3] [--times 5]

Full width, 512 text + 512 target + 512 reference tokens, on the CPU. Each round runs
`cargo bench --bench packed` and then diffusers, one process at a time. The ratio to f32 is the time cost of
packing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORMS = ["f32", "bf16", "q8_0", "q4_0", "fp8"]
KINDS = ["double", "single"]
TEXT, IMAGE, WIDTH = 512, 1024, 3072


def ours(criterion):
    """Returns the seconds of every sample, by kind and form."""
    command = ["cargo", "bench", "--quiet", "--bench", "packed", "--", "--noplot"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CRITERION_HOME": str(criterion)}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)

    def seconds(kind, form):
        sample = json.loads((criterion / kind / form / "new" / "sample.json").read_text())
        return [time / iters * 1e-9 for time, iters in zip(sample["times"], sample["iters"], strict=True)]

    return {(kind, form): seconds(kind, form) for kind in KINDS for form in FORMS}


def diffusers_blocks(times):
    """Prints the seconds of diffusers' blocks as JSON; runs in the interpreter that has diffusers."""
    import time

    import torch
    from diffusers.models.transformers.transformer_flux import (
        FluxPosEmbed,
        FluxSingleTransformerBlock,
        FluxTransformerBlock,
    )

    torch.manual_seed(0)
    heads, width = 24, WIDTH // 24
    blocks = {
        "double": FluxTransformerBlock(dim=WIDTH, num_attention_heads=heads, attention_head_dim=width),
        "single": FluxSingleTransformerBlock(dim=WIDTH, num_attention_heads=heads, attention_head_dim=width),
    }
    ids = torch.zeros(TEXT + IMAGE, 3)
    ids[TEXT:, 1] = torch.arange(IMAGE)
    given = {
        "hidden_states": torch.randn(1, IMAGE, WIDTH),
        "encoder_hidden_states": torch.randn(1, TEXT, WIDTH),
        "temb": torch.randn(1, WIDTH),
        "image_rotary_emb": FluxPosEmbed(theta=10000, axes_dim=[16, 56, 56])(ids),
    }
    seconds = {}
    with torch.inference_mode():
        for kind, block in blocks.items():
            block(**given)
            seconds[kind] = []
            for _ in range(times):
                begin = time.perf_counter()
                block(**given)
                seconds[kind].append(time.perf_counter() - begin)
    print(json.dumps(seconds))


def theirs(args):
    command = [args.python, __file__, "--diffusers", "--times", str(args.times)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has diffusers (default: this one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=5, help="how often diffusers' blocks run in a round")
    parser.add_argument("--criterion", type=Path, default=ROOT / "target" / "criterion", help="where criterion writes its samples")
    parser.add_argument("--diffusers", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.diffusers:
        return diffusers_blocks(args.times)
    all_ours, all_theirs = {}, {}
    for _ in range(args.rounds):
        for key, seconds in ours(args.criterion.resolve()).items():
            all_ours.setdefault(key, []).extend(seconds)
        for kind, seconds in theirs(args).items():
            all_theirs.setdefault(kind, []).extend(seconds)
    for name, statistic in (("median", statistics.median), ("fastest", min)):
        print(f"{name:8}" + "".join(f"{form:>16}" for form in [*FORMS, "diffusers f32"]))
        for kind in KINDS:
            base = statistic(all_ours[kind, "f32"])
            row = [statistic(all_ours[kind, form]) for form in FORMS] + [statistic(all_theirs[kind])]
            print(f"{kind:8}" + "".join(f"{f'{value:.3f} s {value / base:.2f}x':>16}" for value in row))


if __name__ == "__main__":
    main()
