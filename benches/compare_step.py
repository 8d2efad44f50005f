"""Times a denoising step of kontext and of diffusers alternately, and prints their ratio.

    python benches/compare_step.py --python PYTHON_WITH_DIFFUSERS [--depth 1,2 2,4] [--rounds 3] [--steps 10]

Each round runs `cargo bench --bench step` and then `step_diffusers.py`, one process at a time, each with its
own warm-up; both use libtorch's default number of threads. Below one, kontext is faster. kontext computes the
modulation of all steps once per run (`Dit::prepare`); each step's time includes its share.

With two depths, the time at FLUX.1's depth of 19 and 38 blocks is extrapolated: every further pair of blocks
adds the same time, while the ends of the model, and kontext's savings in its last block, count once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN_STEPS = 28
FLUX_DOUBLE, FLUX_SINGLE = 19, 38


def kontext(double, single, criterion):
    """Returns the seconds of each timed step, including its share of one `prepare`, and that share."""
    model = f"{double}-double-{single}-single"
    samples = {name: criterion / model / name / "new" / "sample.json" for name in ("prepare", "step")}
    for path in samples.values():
        path.unlink(missing_ok=True)
    cargo(["--", "--noplot", f"^{model}/"], CRITERION_HOME=str(criterion))

    def seconds(name):
        sample = json.loads(samples[name].read_text())
        return [time / iters * 1e-9 for time, iters in zip(sample["times"], sample["iters"], strict=True)]

    prepare = statistics.median(seconds("prepare")) / RUN_STEPS
    return [step + prepare for step in seconds("step")], prepare


def cargo(arguments, **environment):
    run(["cargo", "bench", "--quiet", "--bench", "step", *arguments], folder=ROOT, **environment)


def diffusers(python, double, single, steps):
    """Returns the seconds of each timed step."""
    script = ROOT / "benches" / "step_diffusers.py"
    output = run([python, str(script), "--double", str(double), "--single", str(single), "--steps", str(steps)])
    return json.loads(output)["seconds"]


def run(command, folder=None, **environment):
    """Returns the output of a command; if it fails, exits with its error output."""
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def measure(depth, args):
    """Times the steps of all rounds at one depth: kontext's and diffusers', in seconds."""
    ours, theirs, shares = [], [], []
    for number in range(1, args.rounds + 1):
        a, prepare = kontext(*depth, args.criterion)
        b = diffusers(args.python, *depth, args.steps)
        ours, theirs, shares = ours + a, theirs + b, [*shares, prepare / statistics.median(a)]
        print(f"{depth[0]}+{depth[1]} blocks, round {number}: {line(a, b)}", flush=True)
    share = statistics.median(shares)
    print(f"{depth[0]}+{depth[1]} blocks, all rounds: {line(ours, theirs)}; {share:.1%} of kontext's time is prepare / {RUN_STEPS}")
    return ours, theirs


def line(ours, theirs):
    """Formats the medians, and the fastest steps, which other programs on the machine disturbed least."""
    text = []
    for name, statistic in (("median", statistics.median), ("fastest", min)):
        mine, other = statistic(ours), statistic(theirs)
        text.append(f"{name} {mine:.3f} s / {other:.3f} s = {mine / other:.3f}")
    return ", ".join(text)


def extrapolate(shallow, deep):
    """Prints the ratio at FLUX.1's depth; each argument is a depth and its two lists of seconds."""
    (depth, *few), (deeper, *many) = shallow, deep
    pairs = (FLUX_DOUBLE - depth[0]) / (deeper[0] - depth[0])
    for name, statistic in (("median", statistics.median), ("fastest", min)):
        lists = zip(few, many, strict=True)
        ours, theirs = (statistic(a) + pairs * (statistic(b) - statistic(a)) for a, b in lists)
        text = f"{ours:.1f} s / {theirs:.1f} s = {ours / theirs:.3f}"
        print(f"{FLUX_DOUBLE}+{FLUX_SINGLE} blocks, extrapolated: {name} {text}")


def depth(text):
    double, single = (int(number) for number in text.split(","))
    if single != 2 * double:
        raise argparse.ArgumentTypeError(f"{text}: as in FLUX.1, there must be twice as many single as double blocks")
    return double, single


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has diffusers (default: this one)")
    parser.add_argument("--depth", type=depth, nargs="+", default=[(1, 2), (2, 4)], help="double,single blocks that step.rs times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="steps that diffusers is timed for in a round; step.rs has its own number")
    parser.add_argument("--criterion", type=Path, default=ROOT / "target" / "criterion", help="where criterion writes its samples")
    args = parser.parse_args()
    args.criterion = args.criterion.resolve()
    cargo(["--no-run"])
    results = [(depth, *measure(depth, args)) for depth in args.depth]
    if len(results) == 2:
        extrapolate(*results)


if __name__ == "__main__":
    main()
