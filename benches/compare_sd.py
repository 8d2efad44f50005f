"""Times a denoising step of kontext, in bf16 and f32, and of stable-diffusion.cpp alternately on the same Q8_0 file.

    python benches/compare_sd.py --sd PATH_OF_SD_CLI --taesd TAEF1_OF_DIFFUSERS [--side 512] [--rounds 2]
        [--kinds bf16 f32] [--options "--diffusion-fa"]

Both edit a square picture of the side with 256 text tokens, on the CPU, each with its default number of threads.
The transformer has FLUX.1's width, 2 double and 4 single blocks and random weights; `file_step.rs` writes it
(1.5 GB in TMPDIR) and times kontext's steps. A step of stable-diffusion.cpp is half the difference between runs of
three steps and of one; it needs a CLIP, a random one here, and takes zeros instead of T5.
"""

import argparse
import shlex
import statistics
import tempfile
import time
from pathlib import Path

from compare_step import ROOT, has_bf16_units, run


def file_step(*arguments):
    """Returns what `file_step.rs` prints."""
    return run(["cargo", "bench", "--quiet", "--bench", "file_step", "--", *arguments], folder=ROOT)


def kontext(file, side, kind):
    """Returns the seconds of each timed step."""
    options = ["--bf16"] if kind == "bf16" else []
    return [float(line) for line in file_step(str(file), "--side", str(side), *options).split()]


def stable_diffusion(file, args):
    """Returns the seconds of a step."""
    folder = file.parent
    model = ["--diffusion-model", file, "--clip_l", folder / "clip_l.safetensors", "--taesd", args.taesd]
    edit = ["-r", folder / "reference.png", "-p", "a cup", "-W", args.side, "-H", args.side, "-o", folder / "out.png"]
    sampling = ["--cfg-scale", 1, "--sampling-method", "euler", *shlex.split(args.options)]

    def seconds(steps):
        start = time.perf_counter()
        run([str(word) for word in [args.sd, *model, *edit, *sampling, "--steps", steps]])
        return time.perf_counter() - start

    return (seconds(3) - seconds(1)) / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd", required=True, help="stable-diffusion.cpp's program")
    parser.add_argument("--taesd", required=True, help="the tiny autoencoder of FLUX.1, as safetensors of diffusers")
    parser.add_argument("--options", default="", help="other options of its program")
    parser.add_argument("--side", type=int, default=512, help="width and height of target and reference")
    parser.add_argument("--rounds", type=int, default=2)
    kinds = ["bf16", "f32"]
    parser.add_argument("--kinds", choices=kinds, nargs="+", default=kinds, help="kontext's arithmetic")
    args = parser.parse_args()
    if "bf16" in args.kinds and not has_bf16_units():
        print("bf16 is left out: this CPU has no units for it")
        args.kinds.remove("bf16")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "flux-Q8_0.gguf"
        file_step(str(file), "--write")
        ours, theirs = {kind: [] for kind in args.kinds}, []
        for number in range(1, args.rounds + 1):
            for kind, seconds in ours.items():
                seconds += kontext(file, args.side, kind)
            theirs.append(stable_diffusion(file, args))
            last = ", ".join(f"kontext {seconds[-1]:.2f} s in {kind}" for kind, seconds in ours.items())
            print(f"round {number}: {last}, stable-diffusion.cpp {theirs[-1]:.2f} s", flush=True)
    for kind, seconds in ours.items():
        mine, other = statistics.median(seconds), statistics.median(theirs)
        ratio = f"{other:.2f} s / {mine:.2f} s = {other / mine:.1f}"
        print(f"{kind}: stable-diffusion.cpp takes {ratio} times kontext's time")


if __name__ == "__main__":
    main()
