"""Runs the stages of the kit, each with a time limit, and records their rows as they arrive.

    python3 run.py KIT OUT --program gpu-kit [--cpu] [--only STAGE,STAGE] [--model DIR] [--fa3 DIR]

`check.sh` prepares a machine and calls this script. OUT receives results.json, log.txt and images. The
stages, in order of priority:

    card         the card and its software
    correctness  kontext on the device compared with the CPU and with stored values
    speed        kontext at the published size: times, launches, memory compared with its plan
    opponents    diffusers on the same card
    facts        ceilings of the card, and libtorch's choice of attention
    ratios       kontext's times divided by the opponents'
    faults       an injected crash, hang and memory exhaustion: only if requested

A stage is a program that prints a line `@begin NAME` before each case and `@row {json}` after it. If it
crashes, exceeds the case's time limit or takes the machine's memory, only that case is lost: it becomes a
row, and the program is restarted for the remaining cases. The exit code is 1 if a row failed, crashed, timed
out or was killed, or if a stage did not end.
"""

import argparse
import contextlib
import datetime
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import goals

HERE = Path(__file__).resolve().parent
BAD = ("failed", "crashed", "timed-out", "killed")
DEVICE_LOST = 3  # exit code of a program that must be restarted for the remaining cases
MOST_STARTS = 12
LAST_START = 0.9  # share of a stage's seconds after which no case is started
WHOLE = 535  # seconds for all stages on a GPU; check.sh, which unpacks the kit, has 560 with them
STARTING = 90  # seconds until a program's first case: gigabytes of libraries may be read from a cold disk
ENDING = 10  # seconds for a program to exit by itself after its output has ended
LOOK = 0.1  # polling interval of a program's memory, in seconds
STDERR_LINES = 6
NOTE = 600


@dataclass
class Stage:
    """A program whose rows share one name."""

    name: str
    command: list
    seconds: float  # time limit of the stage
    case_seconds: float  # time limit of each case
    environment: dict = field(default_factory=dict)
    scratch: Path | None = None  # folder for temporary files, emptied before each start
    has_budget: bool = True  # the program takes its remaining seconds as --budget


class Results:
    """Results so far; the file is complete after each row."""

    def __init__(self, out, kit, args):
        self.path = out / "results.json"
        self.log = (out / "log.txt").open("a", encoding="utf-8")
        self.start = time.monotonic()
        self.content = {"format": 1, "kit": commit_of(kit), "run": run_facts(args), "stages": [], "rows": []}
        self.write()

    def add(self, stage, row, seconds):
        row = {"stage": stage, **row, "seconds": round(seconds, 3)}
        self.content["rows"].append(row)
        self.say(f"{stage}: {row['name']}: {row['status']}{told(row)} ({seconds:.1f} s)")
        self.write()

    def end(self, stage, status, seconds, note=""):
        rows = [row for row in self.content["rows"] if row["stage"] == stage.name]
        command = shlex.join(str(word) for word in stage.command)
        entry = {"stage": stage.name, "status": status, "seconds": round(seconds, 1), "rows": len(rows)}
        self.content["stages"].append({**entry, "command": command, "note": note})
        self.say(f"{stage.name}: {status} after {seconds:.0f} s{': ' + note if note else ''}")
        self.write()

    def say(self, text):
        text = f"[{time.monotonic() - self.start:6.1f} s] {text}"
        print(text, flush=True)
        print(text, file=self.log, flush=True)

    def write(self):
        self.content["run"]["seconds"] = round(time.monotonic() - self.start, 1)
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
        draft.replace(self.path)


def told(row):
    """Formats a row's numbers and its note in short."""
    values = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row["values"].items()]
    text = ", ".join([*values, row["note"]] if row["note"] else values)
    return f": {text}" if text else ""


def commit_of(kit):
    lines = (kit / "commit.txt").read_text(encoding="utf-8").split("\n") if (kit / "commit.txt").is_file() else []
    return {"commit": lines[0] if lines else "unknown", "date": lines[1] if len(lines) > 1 else "unknown"}


def run_facts(args):
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"date": now.strftime("%Y-%m-%d %H:%M UTC"), "command": args.shown, "cpu": args.cpu, "seconds": 0.0}


class Process:
    """A started program: its output lines, memory and exit code."""

    def __init__(self, stage, skip, left, results):
        command = [str(word) for word in stage.command] + (["--skip", ",".join(skip)] if skip else [])
        # No case is started too late to finish.
        command += ["--budget", str(int(LAST_START * left))] if stage.has_budget else []
        self.results, self.errors, self.lines = results, [], queue.Queue()
        # A separate process group, so that its children are killed with it.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, errors="replace",
            env=stage.environment, start_new_session=True,
        )  # fmt: skip
        self.readers = [threading.Thread(target=target, daemon=True) for target in (self.read_output, self.read_errors)]
        for reader in self.readers:
            reader.start()

    def read_output(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def read_errors(self):
        for line in self.process.stderr:
            self.errors = [*self.errors, line.strip()][-STDERR_LINES:]
            print(line, end="", file=self.results.log, flush=True)

    def next(self, seconds):
        """Returns the next line, None at the end of the output, or an empty line on a timeout."""
        try:
            return self.lines.get(timeout=seconds)
        except queue.Empty:
            if self.process.poll() is None:
                return ""
        # The program has ended; its children may hold its output open.
        self.readers[0].join(timeout=1)
        return None if self.lines.empty() else self.lines.get()

    def memory(self):
        """Returns the bytes of the program's resident memory, without file pages."""
        try:
            fields = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()
        except OSError:
            return 0
        return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")

    def stop(self):
        """Waits for the program to exit after the end of its output, and returns the exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=ENDING)
        return self.kill()

    def kill(self):
        """Kills the program and its children, and returns the exit code, or None if it does not exit."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=ENDING)
        for reader in self.readers:
            reader.join(timeout=1)
        return self.process.returncode


def run(stage, results, memory_limit):
    """Runs a stage, with restarts, to its end, its time limit, or the maximum number of starts."""
    begun, done = time.monotonic(), []
    for _ in range(MOST_STARTS):
        left = stage.seconds - (time.monotonic() - begun)
        if left <= 0:
            break
        empty(stage.scratch)
        outcome = attempt(stage, done, results, begun, memory_limit)
        if outcome is not None:
            status, note = outcome
            results.end(stage, status, time.monotonic() - begun, note)
            return
    else:
        results.end(stage, "given-up", time.monotonic() - begun, f"after {MOST_STARTS} starts")
        return
    results.end(stage, "timed-out", time.monotonic() - begun, f"its {stage.seconds:.0f} s were over")


def attempt(stage, done, results, begun, memory_limit):
    """Starts the program once. Returns None if it must be restarted, else the stage's status and a note."""
    try:
        process = Process(stage, done, stage.seconds - (time.monotonic() - begun), results)
    except OSError as error:
        return "failed", f"cannot start {stage.command[0]}: {error}"
    case, case_begun, new = None, time.monotonic(), 0

    def lost(status, note):
        """Records the running case as a row, so that it is not run again."""
        row = {"name": case, "status": status, "values": {}, "note": note[:NOTE]}
        results.add(stage.name, row, time.monotonic() - case_begun)
        done.append(case)

    while (line := process.next(LOOK)) is not None:
        now = time.monotonic()
        if line.startswith("@begin "):
            case, case_begun = line.removeprefix("@begin "), now
            process.errors = []
        elif line.startswith("@row "):
            row = row_of(line, case)
            results.add(stage.name, row, now - case_begun)
            done.append(row["name"])
            case, case_begun, new = None, now, new + 1
        elif line:
            print(line, file=results.log, flush=True)
        if process.memory() > memory_limit:
            limit = f"{memory_limit / 1e9:.1f} GB of the machine's memory"
            process.kill()
            if case is None:
                return "killed", f"it held more than {limit} between its cases"
            lost("killed", f"it held more than {limit}")
            return None
        if now - begun > stage.seconds:
            process.kill()
            if case is not None:
                lost("timed-out", f"the stage's {stage.seconds:.0f} s were over")
            return "timed-out", f"its {stage.seconds:.0f} s were over"
        if now - case_begun > (STARTING if case is None and not new else stage.case_seconds):
            process.kill()
            if case is None:
                return "timed-out", f"nothing came for {now - case_begun:.0f} s"
            lost("timed-out", f"no result after {stage.case_seconds:.0f} s")
            return None
    code = process.stop()
    said = " | ".join(line for line in process.errors if line)
    if case is not None:
        lost("crashed", f"{ended(code)}: {said}" if said else ended(code))
        return None
    if code == 0:
        return "ended", ""
    if code == DEVICE_LOST and new:
        return None
    return "failed", f"{ended(code)}: {said}"[:NOTE]


def row_of(line, case):
    """Parses a row of the program's output; a malformed one becomes a failed row of its case."""
    try:
        row = json.loads(line.removeprefix("@row "))
        return {"name": row["name"], "status": row["status"], "values": dict(row["values"]), "note": row["note"]}
    except (ValueError, KeyError, TypeError) as error:
        note = f"its row cannot be read ({error}): {line}"[:NOTE]
        return {"name": case or "unknown", "status": "failed", "values": {}, "note": note}


def ended(code):
    if code is None:
        return "it did not end when it was killed"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def ratios(results, cpu):
    """Computes kontext's milliseconds divided by each opponent's, for the cases timed by both."""
    begun, rows = time.monotonic(), results.content["rows"]
    timed = [row for row in rows if "ms" in row["values"] and "/" in row["name"]]
    times = [(row["stage"], *row["name"].split("/", 1), row["values"]["ms"]) for row in timed]
    note = "both models are tiny and of sizes of their own: only to try the programs" if cpu else ""
    for _, case, own, ms in [row for row in times if row[0] == "speed" and not row[2].endswith((", prepare", ", unfused"))]:
        for _, _, rival, rival_ms in [row for row in times if row[:2] == ("opponents", case)]:
            # A case with several dtypes: only equal dtypes are compared.
            if any(kind in own and kind not in rival for kind in ("bf16", "f32")):
                continue
            values = {"ratio": ms / rival_ms, "kontext_ms": ms, "opponent_ms": rival_ms}
            row = {"name": f"{case}/{own} over {rival}", "status": "measured", "values": values, "note": note}
            results.add("ratios", row, 0.0)
    results.end(Stage("ratios", ["run.py"], 0, 0), "ended", time.monotonic() - begun)


def stages(args):
    """Returns the stages, with their time limits on a GPU, together limited by WHOLE, and on a CPU."""
    device = ["--device", "cpu" if args.cpu else "cuda"]
    python = [args.python, "-u"]
    cpu, fa3 = ["--cpu"] if args.cpu else [], ["--fa3", args.fa3] if args.fa3 else []
    checked = ["--model", args.model, "--inputs", args.kit / "inputs", "--out", args.out]
    # Python finds torch's libraries by itself. A driver's libraries may only be found by this variable.
    libraries = ":".join(path for path in (args.libraries, os.environ.get("LD_LIBRARY_PATH")) if path)
    environment = os.environ | {"TMPDIR": str(args.scratch), **({"LD_LIBRARY_PATH": libraries} if libraries else {})}
    program, plain = {"environment": environment, "scratch": args.scratch}, {"environment": dict(os.environ)}

    def stage(name, command, seconds, case_seconds, **more):
        return Stage(name, command, args.patience * seconds, args.patience * case_seconds, **more)

    return [
        stage("card", [*python, HERE / "facts.py", *cpu, "--only", "card"], 40, 40, **plain),
        stage("correctness", [args.program, "check", *device, *checked, *fa3], 300 if args.cpu else 140, 60, **program),
        stage("speed", [args.program, "speed", *device, *fa3], 175, 60, **program),
        stage("opponents", [*python, HERE / "opponents.py", *cpu, *fa3], 190, 90, **plain),
        stage("facts", [*python, HERE / "facts.py", *cpu, *fa3, "--skip", "card"], 80, 30, **plain),
        stage("faults", [args.program, "plant", *device], 90, 10, has_budget=False, **program),
    ]


def roomy(least=30_000_000_000):
    """Returns /dev/shm if it has space for large files, else None: reading and writing is fastest there."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > least else None


def empty(folder):
    """Removes the leftovers of a killed program."""
    for path in folder.iterdir() if folder else ():
        shutil.rmtree(path, ignore_errors=True)


def free_memory():
    """Returns the bytes of available host memory."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return 1 << 62


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, help="folder that `cargo xtask gpu-kit` made")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--program", type=Path, required=True, help="the unpacked gpu-kit")
    parser.add_argument("--libraries", default="", help="folder of libtorch's libraries, for that program")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch and the wheels (default: this one)")
    parser.add_argument("--fa3", default="", help="folder that holds fa3_fwd")
    parser.add_argument("--model", type=Path, default=Path("models/kontext-emoji"), help="the small model")
    parser.add_argument("--only", default="", help="these stages, with a comma between them")
    parser.add_argument("--cpu", action="store_true", help="the same stages at tiny sizes on the CPU")
    parser.add_argument("--patience", type=float, default=1.0, help="all limits are multiplied by this")
    parser.add_argument("--memory", type=float, default=0.9, help="share of the free memory that a program may hold")
    parser.add_argument("--shown", default="", help="the command that the results name (default: this one)")
    args = parser.parse_args()
    args.shown = args.shown or shlex.join(["python3", *sys.argv])
    return args


def main():
    args = arguments()
    with tempfile.TemporaryDirectory(dir=roomy()) as scratch:
        args.scratch = Path(scratch)
        sys.exit(run_all(args))


def run_all(args):
    """Runs the requested stages; returns 1 if a row or a stage is bad, else 0."""
    args.out.mkdir(parents=True, exist_ok=True)
    args.out = args.out.resolve()
    results = Results(args.out, args.kit, args)
    chosen = [name for name in args.only.split(",") if name]
    everything = stages(args)
    known = [stage.name for stage in everything] + ["ratios"]
    if unknown := [name for name in chosen if name not in known]:
        sys.exit(f"unknown stage {', '.join(unknown)}; there are {', '.join(known)}")
    memory_limit = args.memory * free_memory()
    for stage in everything:
        if stage.name in chosen or (not chosen and stage.name != "faults"):
            if not args.cpu:
                stage.seconds = min(stage.seconds, WHOLE - (time.monotonic() - results.start))
            try:
                run(stage, results, memory_limit)
            except Exception as error:  # an error of this script must not cost the later stages
                results.say(traceback.format_exc())
                results.end(stage, "failed", 0, f"{type(error).__name__}: {error}")
    if not chosen or "ratios" in chosen:
        ratios(results, args.cpu)
    for text in [] if args.cpu or chosen else goals.lines(results.content["rows"]):
        results.say(f"goal: {text}")
    bad = [row for row in results.content["rows"] if row["status"] in BAD]
    bad_stages = [stage for stage in results.content["stages"] if stage["status"] != "ended"]
    results.say(f"{len(results.content['rows'])} rows, {len(bad)} of them bad; {len(bad_stages)} stages did not end")
    for row in bad:
        results.say(f"  {row['stage']}: {row['name']}: {row['status']}: {row['note']}")
    return 1 if bad or bad_stages else 0


if __name__ == "__main__":
    main()
