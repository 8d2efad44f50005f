"""The numbers of threads of a run, compared: one edit alone, next to two busy processes, eight edits at once on one
pipeline, and eight processes.

    python benches/threads.py                                   # builds `threads.rs`, next to this file
    python benches/threads.py --models emoji --rounds 5

Settings alternate within a round, and the best of the rounds counts, next to the mean. The last column is the time of the
automatic number, relative to the best fixed one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Processes, runs at once in each, busy processes next to them.
SITUATIONS = {
    "alone": (1, 1, 0),
    "next to two busy processes": (1, 1, 2),
    "8 runs on one pipeline": (1, 8, 0),
    "8 processes": (8, 1, 0),
}


def built(profile: str) -> str:
    command = ["cargo", "build", "--bench", "threads", "--profile", profile, "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    messages = [json.loads(line) for line in lines if line.startswith("{")]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "threads")


def line(process: subprocess.Popen) -> str:
    text = process.stdout.readline().strip()
    if not text:
        sys.exit("threads ended without a result")
    return text


def timed(program: str, model: str, threads: str, processes: int, runs: int, busy: int) -> tuple[float, str]:
    command = [program, "--model", model, "--threads", threads, "--runs", str(runs)]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipe) for _ in range(processes)]
    numbers = [line(process).removeprefix("ready ") for process in started][0]
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        begin = time.perf_counter()
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in started:
            line(process)
        seconds = time.perf_counter() - begin
        if any(process.wait() for process in started):
            sys.exit("threads failed")
    finally:
        for other in others:
            other.kill()
            other.wait()
    return seconds, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="emoji,middle,large")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="release")
    parser.add_argument("--program", help="a built benches/threads.rs")
    args = parser.parse_args()
    program = args.program or built(args.profile)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fixed = ["1", str(cores)]
    print(f"{cores} cores; seconds, best (mean) of {args.rounds} rounds\n")
    print("| model | situation | " + " | ".join(f"{n} thread(s)" for n in fixed) + " | automatic | its number | ratio |")
    print("|---|---|" + "---|" * (len(fixed) + 3))
    for model in args.models.split(","):
        for name, situation in SITUATIONS.items():
            times: dict[str, list[float]] = {threads: [] for threads in [*fixed, "auto"]}
            numbers = ""
            for _ in range(args.rounds):
                for threads, seconds in times.items():
                    took, numbers = timed(program, model, threads, *situation)
                    seconds.append(took)
            cells = [f"{min(seconds):.2f} ({statistics.mean(seconds):.2f})" for seconds in times.values()]
            ratio = min(times["auto"]) / min(min(times[threads]) for threads in fixed)
            print(f"| {model} | {name} | " + " | ".join(cells) + f" | {numbers} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
