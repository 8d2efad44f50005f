"""Runs diffusers' FluxKontextPipeline and the `edit` and `generate` examples on one tiny checkpoint and compares them.

    cargo build --release --examples && python tests/reference/compare_pipeline.py

f32 on the CPU, the same starting noise. Prints the relative L2 error of each stage, and exits 1 if one is above
1e-4, if the written image is more than one level off anywhere or by 1e-4 of the full scale on average, or if a
seed does not give the pipeline's own noise bit for bit.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

import diffusers_runs as reference

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4
REQUIRED = ["latents", "prompt_embeds", "pooled_prompt_embeds", "context_latents"]
# Checkpoint and layout; the original layout cannot express the sizes of `odd`.
TARGETS = [("odd", "diffusers"), ("standard", "diffusers"), ("standard", "bfl")]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, default=ROOT / "target" / "compare", help="folder for all files")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target" / "release" / "examples")
    parser.add_argument("--reuse", action="store_true", help="keep the diffusers results already in --save")
    parser.add_argument("--diffusers-only", action="store_true", help="stop before our half")
    parser.add_argument("--case", action="append", choices=reference.CASES, help="only this case; may be repeated")
    parser.add_argument("--checkpoint", action="append", choices=reference.CHECKPOINTS, help="only this one; may be repeated")
    args = parser.parse_args()
    args.case, args.checkpoint = args.case or list(reference.CASES), args.checkpoint or list(reference.CHECKPOINTS)
    return args


def run_diffusers(args):
    """Writes the checkpoints and diffusers' results of every case."""
    for name in args.checkpoint:
        folder = args.save / name
        missing = [c for c in args.case if not (args.reuse and (folder / c / "diffusers.safetensors").exists())]
        seeds = folder / "seed.safetensors"
        if not missing and seeds.exists():
            continue
        reference.write_checkpoint(name, folder)
        pipe = reference.load(folder)
        for case in missing:
            reference.run(pipe, reference.CASES[case], folder / case)
        reference.starting_noise(pipe, seeds)


def command(args, model, case, *more):
    """Returns the command line of our example for `case`."""
    example = "edit" if case["image"] else "generate"
    given = {
        "model": model, "prompt": case["prompt"], "negative-prompt": case.get("negative"), "true-cfg": case.get("true_cfg"),
        "prompt-2": case.get("prompt_2"), "negative-prompt-2": case.get("negative_2"),
        "width": case["width"], "height": case["height"], "max-area": case["max_area"], "steps": case["steps"],
        "guidance": case["guidance"], "device": "cpu", "conform": "diffusers",
    }  # fmt: skip
    flags = [text for key, value in given.items() if value is not None for text in (f"--{key}", str(value))]
    return [str(args.binaries / example), *flags, *map(str, more)]


def run_ours(line):
    """Runs our example; prints its output and returns False if it fails."""
    if not Path(line[0]).exists():
        print(f"FAILED: {line[0]} is not built")
        return False
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"FAILED ({done.returncode}): {' '.join(line)}\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def relative_error(expected, got):
    """|expected - got| / |expected|, infinite if `got` is missing or has another shape."""
    if got is None or got.shape != expected.shape:
        return math.inf
    expected, got = expected.double(), got.double()
    error = ((expected - got).norm() / expected.norm()).item()
    return error if math.isfinite(error) else math.inf


def stage_errors(expected, got):
    """Returns the error of every stage; that of the negative prompt only if ours dumps it."""
    wanted = [name for name in REQUIRED if name in expected] + [n for n in expected if n.startswith("negative_") and n in got]
    wanted += sorted((n for n in expected if n.startswith("step_")), key=lambda n: int(n[5:])) + ["final"]
    return {name: relative_error(expected[name], got.get(name)) for name in wanted}


def picture_difference(expected, got):
    """Returns the largest difference in levels, mean difference over the full scale, and the share of values that differ."""
    a, b = (np.asarray(Image.open(path).convert("RGB"), dtype=np.int16) for path in (expected, got))
    if a.shape != b.shape:
        return math.inf, math.inf, 1.0
    difference = np.abs(a - b)
    return int(difference.max()), difference.mean() / 255, (difference > 0).mean()


def compare_case(args, model, case, folder, ours):
    """Compares our half of one case with the diffusers half in `folder`: errors of the stages and of the image.

    `ours` is the path of our files without its extension. Returns None if our example fails.
    """
    dump, png = Path(f"{ours}.safetensors"), Path(f"{ours}.png")
    for old in (dump, png):
        old.unlink(missing_ok=True)
    more = ["--dtype", "f32", "--seed", 0, "--noise", folder / "noise.safetensors", "--dump", dump, "--out", png]
    more += ["--image", folder / "image.png"] if case["image"] else []
    if not run_ours(command(args, model, case, *more)):
        return None
    expected = safetensors.torch.load_file(folder / "diffusers.safetensors")
    errors = stage_errors(expected, safetensors.torch.load_file(dump))
    return errors, picture_difference(folder / "diffusers.png", png)


def picture_ok(largest, mean, _share):
    return largest <= 1 and mean <= TOLERANCE


def compare(args, name, layout, case_name):
    """Runs our half of one case and prints its rows; True when all is within tolerance."""
    case, folder = reference.CASES[case_name], args.save / name / case_name
    result = compare_case(args, args.save / name / layout, case, folder, folder / f"{layout}.ours")
    if result is None:
        return False
    errors, picture = result
    largest, mean, share = picture
    label = f"{name}/{layout}/{case_name}"
    for stage, error in errors.items():
        print(f"{label:40} {stage:30} {error:10.2e} {'' if error <= TOLERANCE else '  TOO LARGE'}")
    ok = picture_ok(*picture)
    print(f"{label:40} {'picture':30} {mean:10.2e} {'' if ok else '  TOO LARGE'}  max {largest}, {share:.3%} differ", flush=True)
    return ok and all(error <= TOLERANCE for error in errors.values())


def compare_seed(args, name, dtype):
    """Returns True if our `--seed` starts from the pipeline's own noise, bit for bit."""
    dump, png = args.save / name / f"seed.{dtype}.ours.safetensors", args.save / name / f"seed.{dtype}.ours.png"
    case = reference.SEED_CASE | {"image": None, "prompt": "rust", "steps": 1, "guidance": 2.5}
    more = ["--dtype", dtype, "--seed", case["seed"], "--dump", dump, "--out", png]
    if not run_ours(command(args, args.save / name / "diffusers", case, *more)):
        return False
    expected = safetensors.torch.load_file(args.save / name / "seed.safetensors")[dtype].float()
    same = torch.equal(expected, safetensors.torch.load_file(dump)["latents"].float())
    print(f"{f'{name}/seed/{dtype}':40} {'latents':30} {'equal' if same else 'DIFFERENT':>10}", flush=True)
    return same


def main():
    args = parse()
    run_diffusers(args)
    if args.diffusers_only:
        return 0
    results = [compare(args, name, layout, case) for name, layout in TARGETS if name in args.checkpoint for case in args.case]
    results += [compare_seed(args, args.checkpoint[0], dtype) for dtype in ("f32", "bf16")]
    print("all within tolerance" if all(results) else f"{results.count(False)} of {len(results)} comparisons failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
