"""Runs our `edit` example on every form that forms.py writes, and diffusers on the values that the form encodes.

    cargo build --release --examples && python tests/reference/compare_forms.py

f32 on the CPU, the same starting noise. Prints the relative L2 errors of each form; exits 1 if one is above 1e-4, if
the written image is more than one level off anywhere or by 1e-4 of the full scale on average. "change of final" is
the distance by which the form moves diffusers' own result: an error below it shows that our reader decodes the form.
"""

import argparse
import sys
from pathlib import Path

import safetensors.torch

import compare_pipeline
import diffusers_runs as reference
import forms

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = compare_pipeline.TOLERANCE
CASE = {
    "image": (128, 128), "prompt": "Make the cat wear a red hat, keep the background unchanged.",
    "width": 128, "height": 128, "max_area": 128 * 128, "steps": 3, "guidance": 2.5,
    # The models' kontext.json has the same effect, but diffusers cannot read it: the reference keeps its
    # size.
    "call": {"_auto_resize": False},
}  # fmt: skip
SHOWN = ["prompt_embeds", "pooled_prompt_embeds", "context_latents", "final"]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, default=ROOT / "target" / "compare-forms", help="folder for all files")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target" / "release" / "examples")
    parser.add_argument("--reuse", action="store_true", help="keep the forms and diffusers results already in --save")
    parser.add_argument("--diffusers-only", action="store_true", help="stop before our half")
    parser.add_argument("--form", action="append", choices=forms.FORMS, help="only this form; may be repeated")
    args = parser.parse_args()
    args.form = args.form or list(forms.FORMS)
    return args


def result(args, name):
    """Returns the file of diffusers' results of a form, or of the checkpoint itself."""
    return args.save / name / "edit" / "diffusers.safetensors"


def run_diffusers(args):
    """Writes the forms and diffusers' results on the values of each."""
    done = [name for name in args.form if args.reuse and result(args, name).exists()]
    missing = [name for name in args.form if name not in done]
    if not missing and result(args, "base").exists():
        return
    reference.quiet()
    forms.BINARIES = args.binaries
    base = forms.Base(args.save / "base")
    base.pipe.set_progress_bar_config(disable=True)
    reference.run(base.pipe, CASE, args.save / "base" / "edit")
    for name in missing:
        forms.write(name, base, args.save / name)
        reference.run(forms.load_reference(base, args.save / name), CASE, args.save / name / "edit")


def change(args, name):
    """Returns the distance by which the form's values move diffusers' result from that of the original checkpoint."""
    finals = [safetensors.torch.load_file(result(args, of))["final"] for of in ("base", name)]
    return compare_pipeline.relative_error(*finals)


def row(name, *columns):
    print(f"{name:24}" + "".join(f"{column:>22}" for column in columns), flush=True)


def compare(args, name):
    """Runs our half of one form and prints its row; True when all is within tolerance."""
    folder = args.save / name / "edit"
    done = compare_pipeline.compare_case(args, args.save / name / "model", CASE, folder, folder / "ours")
    if done is None:
        row(name, "FAILED")
        return False
    errors, picture = done
    ok = all(error <= TOLERANCE for error in errors.values()) and compare_pipeline.picture_ok(*picture)
    row(name, f"{change(args, name):.2e}", *(f"{errors[stage]:.2e}" for stage in SHOWN), "" if ok else "TOO LARGE")
    return ok


def main():
    args = parse()
    run_diffusers(args)
    if args.diffusers_only:
        row("form", "change of final")
        for name in args.form:
            row(name, f"{change(args, name):.2e}")
        return 0
    row("form", "change of final", *SHOWN)
    results = [compare(args, name) for name in args.form]
    print("all within tolerance" if all(results) else f"{results.count(False)} of {len(results)} forms failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
