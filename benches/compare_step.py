"""Times a denoising step of kontext and of diffusers alternately, in f32 and bf16, and prints their ratios.

    python benches/compare_step.py --python PYTHON_WITH_DIFFUSERS [--kinds f32 bf16] [--depth 1,2 2,4] [--rounds 3]
        [--steps 10]

Each round runs `cargo bench --bench step` and then `step_diffusers.py` in each kind, one process at a time, each with
its own warm-up; all use libtorch's default number of threads. Below one, kontext is faster. kontext computes the
modulation of all steps once per run (`Dit::prepare`); each step's time includes its share. bf16 is left out, with a
message, on a CPU without units for it.

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


def kontext(double, single, kind, criterion):
    """Returns the seconds of each timed step, including its share of one `prepare`, and that share."""
    model = f"{double}-double-{single}-single" + ("" if kind == "f32" else f"-{kind}")
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


def diffusers(python, double, single, kind, steps):
    """Returns the seconds of each timed step."""
    script = ROOT / "benches" / "step_diffusers.py"
    depth = ["--double", str(double), "--single", str(single)]
    output = run([python, str(script), *depth, "--kind", kind, "--steps", str(steps)])
    return json.loads(output)["seconds"]


def has_bf16_units():
    """Returns if the CPU names units for bf16, as `kontext_device::cpu::has_bf16_units` finds them on Linux."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return any(unit in words for unit in ("avx512_bf16", "amx_bf16", "bf16"))


def run(command, folder=None, **environment):
    """Returns the output of a command; if it fails, exits with its error output."""
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def measure(depth, args):
    """Times the steps of all rounds at one depth: kontext's and diffusers' seconds by kind."""
    times = {kind: ([], [], []) for kind in args.kinds}
    name = f"{depth[0]}+{depth[1]} blocks"
    for number in range(1, args.rounds + 1):
        for kind, (ours, theirs, shares) in times.items():
            a, prepare = kontext(*depth, kind, args.criterion)
            b = diffusers(args.python, *depth, kind, args.steps)
            ours += a
            theirs += b
            shares.append(prepare / statistics.median(a))
            print(f"{name} in {kind}, round {number}: {line(a, b)}", flush=True)
    for kind, (ours, theirs, shares) in times.items():
        share = f"{statistics.median(shares):.1%} of kontext's time is prepare / {RUN_STEPS}"
        print(f"{name} in {kind}, all rounds: {line(ours, theirs)}; {share}")
    kinds = list(times)
    for kind in kinds[1:]:
        print(f"{name}, kontext in {kind} to its {kinds[0]}: {line(times[kind][0], times[kinds[0]][0])}")
    return {kind: (ours, theirs) for kind, (ours, theirs, _) in times.items()}


def line(ours, theirs):
    """Formats the medians, and the fastest steps, which other programs on the machine disturbed least."""
    text = []
    for name, statistic in (("median", statistics.median), ("fastest", min)):
        mine, other = statistic(ours), statistic(theirs)
        text.append(f"{name} {mine:.3f} s / {other:.3f} s = {mine / other:.3f}")
    return ", ".join(text)


def extrapolate(kind, depth, few, deeper, many):
    """Prints the ratio at FLUX.1's depth from two depths, each with its two lists of seconds."""
    pairs = (FLUX_DOUBLE - depth[0]) / (deeper[0] - depth[0])
    for name, statistic in (("median", statistics.median), ("fastest", min)):
        lists = zip(few, many, strict=True)
        ours, theirs = (statistic(a) + pairs * (statistic(b) - statistic(a)) for a, b in lists)
        text = f"{ours:.1f} s / {theirs:.1f} s = {ours / theirs:.3f}"
        print(f"{FLUX_DOUBLE}+{FLUX_SINGLE} blocks in {kind}, extrapolated: {name} {text}")


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
    parser.add_argument("--kinds", choices=["f32", "bf16"], nargs="+", default=["f32", "bf16"], help="kinds of arithmetic")
    args = parser.parse_args()
    if "bf16" in args.kinds and not has_bf16_units():
        print("bf16 is left out: this CPU has no units for it")
        args.kinds.remove("bf16")
        if not args.kinds:
            return
    args.criterion = args.criterion.resolve()
    cargo(["--no-run"])
    results = [measure(depth, args) for depth in args.depth]
    if len(results) == 2:
        for kind in args.kinds:
            extrapolate(kind, args.depth[0], results[0][kind], args.depth[1], results[1][kind])


if __name__ == "__main__":
    main()
