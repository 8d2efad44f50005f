"""Common code of `facts.py` and `opponents.py`: named measurements, their rows on stdout, and timing.

Two kinds of lines on standard output are machine-readable; all others are a log for people.

    @begin NAME          the measurement of this name begins
    @row {"name": NAME, "status": "measured" | "failed" | "skipped", "values": {..}, "note": ".."}

A measurement that raises also gives a row, and the next one follows. If the GPU no longer responds then, the
program exits with code 3: it can be restarted with `--skip` and the names of the finished measurements.
Without a GPU and without `--cpu` the only row is a skipped one, «device», and the exit code is 0.
"""

import argparse
import dataclasses
import gc
import json
import math
import os
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch

START = time.perf_counter()
DEVICE_LOST = 3
NOTE_LENGTH = 400
SLEEP_CYCLES = 10_000_000
E4M3, E4M3_MAX = torch.float8_e4m3fn, 448.0


class Skip(Exception):
    """Raised by a measurement that does not apply; its message is the row's note."""


class Measurement(NamedTuple):
    """A named measurement. The function returns the row's values; a «note» among them is the row's note."""

    name: str
    seconds: float  # required share of the budget, compilation included
    function: Callable[[], dict[str, Any]]


@dataclasses.dataclass
class Timing:
    first_s: float  # the first call, by the wall clock
    ms: float  # the median of the timed calls
    min_ms: float
    peak_gb: float | None  # peak allocation over all calls, including earlier tensors; None on the CPU

    def values(self):
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}


def arguments(description, budget):
    """Builds a parser with the options common to both programs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU, to try the program itself")
    parser.add_argument("--only", type=names, default=[], help="measure what begins with one of these names")
    parser.add_argument("--skip", type=names, default=[], help="leave out the measurements of exactly these names")
    parser.add_argument("--budget", type=float, default=budget, help=f"seconds for all of it (default: {budget})")
    parser.add_argument("--fa3", metavar="DIR", help="where fa3_fwd/_C.abi3.so, FlashAttention 3, lies")
    return parser


def names(text):
    """Splits a list of names at commas without a following space; a comma within a name has one."""
    return [name for name in re.split(r",(?! )", text) if name]


def find_device(args):
    """Returns the device to measure. If there is none, prints a row and exits without an error."""
    if args.cpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        begin("device")
        row("device", "skipped", note=f"CUDA is not available: {first_sentence(reason_without_cuda())}.")
        sys.exit(0)
    if not answers():
        begin("device")
        row("device", "failed", note="CUDA is available, but the device doesn't run an addition.")
        sys.exit(0)
    return torch.device("cuda")


def reason_without_cuda():
    try:
        torch.cuda.init()
    except Exception as error:
        return str(error)
    return "torch gives no reason"


def first_sentence(text):
    return re.split(r"\.(?:\s|$)", one_line(text))[0]


def begin(name):
    print(f"@begin {name}", flush=True)


def row(name, status, values=None, note=""):
    values = {key: portable(value) for key, value in (values or {}).items()}
    text = json.dumps({"name": name, "status": status, "values": values, "note": one_line(note)[:NOTE_LENGTH]})
    print(f"@row {text}", flush=True)


def portable(value):
    """Converts a value to JSON: infinity and NaN, absent there, become strings; floats keep six digits."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def one_line(text):
    return " ".join(str(text).split())


def log(text):
    print(f"[{elapsed():6.1f} s] {text}", flush=True)


def elapsed():
    return time.perf_counter() - START


def run(measurements, args, device):
    """Runs the measurements selected by `--only` and `--skip`, in order, as long as the budget lasts."""
    for measurement in measurements:
        name = measurement.name
        if args.only and not any(name.startswith(prefix) for prefix in args.only):
            continue
        if name in args.skip:
            continue
        begin(name)
        left = args.budget - elapsed()
        if left < measurement.seconds:
            note = f"{max(left, 0):.0f} s of the budget were left and {measurement.seconds:.0f} s wanted."
            row(name, "skipped", note=note)
            continue
        failed = measure(measurement)
        free_memory()
        if failed and device.type == "cuda" and not answers():
            log("The device doesn't answer any more.")
            sys.stdout.flush()
            os._exit(DEVICE_LOST)  # a lost device can hang or abort an orderly exit
    log("done")


def measure(measurement):
    """Runs one measurement, prints its row, and returns True on failure. Its tensors are freed on return."""
    failure = None
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            values = measurement.function()
        except Skip as reason:
            row(measurement.name, "skipped", note=str(reason))
            return False
        except Exception as error:
            failure = f"{type(error).__name__}: {one_line(error)}"
    said = list(dict.fromkeys(one_line(warning.message) for warning in caught))
    if failure is None:
        note = values.pop("note", "")
        row(measurement.name, "measured", values, note)
    else:
        row(measurement.name, "failed", note=" | ".join([failure, *said]))
    for text in said:
        log(f"warning: {text[:200]}")
    log(f"{measurement.name}: {time.perf_counter() - start:.1f} s in all")
    return failure is not None


def free_memory():
    """Releases the GPU's unused memory; the CPU's tiny tensors may stay."""
    if not torch.cuda.is_available():
        return
    gc.collect()
    try:
        torch.cuda.empty_cache()
    except Exception as error:  # `answers` checks separately if the device still works
        log(f"The cache can't be emptied: {one_line(error)[:NOTE_LENGTH]}")


def answers():
    """Returns True if the GPU still computes."""
    try:
        total = (torch.ones(8, device="cuda") + 1).sum()
        torch.cuda.synchronize()
        return total.item() == 16
    except Exception as error:
        log(f"The device fails: {one_line(error)[:NOTE_LENGTH]}")
        return False


def timed(function, device, iterations, warmup, ahead=False):
    """Times calls of a function; returns the timing and the result of the last call.

    On the GPU, events are recorded between back-to-back calls, as in the steps of a sampler. With `ahead` the
    device first sleeps for some milliseconds while the host fills its queue, so that short kernels are timed
    without their launch overhead.
    """
    if device.type == "cpu":
        return timed_on_cpu(function, min(iterations, 2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = function()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(warmup):
        result = function()
    torch.cuda.synchronize()
    if ahead:
        torch.cuda._sleep(SLEEP_CYCLES)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(iterations + 1)]
    events[0].record()
    for event in events[1:]:
        result = function()
        event.record()
    torch.cuda.synchronize()
    times = [before.elapsed_time(after) for before, after in pairwise(events)]
    peak = torch.cuda.max_memory_allocated() / 1e9
    return Timing(first, statistics.median(times), min(times), peak), result


def timed_on_cpu(function, iterations):
    times = []
    for _ in range(1 + iterations):
        start = time.perf_counter()
        result = function()
        times.append((time.perf_counter() - start) * 1e3)
    return Timing(times[0] / 1e3, statistics.median(times[1:]), min(times[1:]), None), result


def relative_l2(actual, reference):
    actual, reference = actual.double(), reference.double()
    return ((actual - reference).norm() / reference.norm()).item()


def to_e4m3(tensor, each_row):
    """Quantises a tensor to e4m3; returns it with f32 scales by row, [rows, 1], or of the whole tensor."""
    tensor = tensor.float()
    largest = tensor.abs().amax(1, keepdim=True) if each_row else tensor.abs().amax()
    factors = largest.clamp(min=1e-12) / E4M3_MAX
    return (tensor / factors).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), factors


def e4m3_linear(rows, weight, row_factors, weight_factors, bias=None):
    """Computes `rows @ weight.t() + bias` in bf16, from e4m3 [rows, in] and [out, in].

    The scales are [rows, 1] and [1, out], or two scalars. The CPU's `_scaled_mm` only supports scalars: there
    it is called with scales of one, and the product is multiplied by ours.
    """
    if rows.is_cuda:
        return torch._scaled_mm(
            rows, weight.t(), row_factors, weight_factors, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    one = torch.ones((), device=rows.device)
    product = torch._scaled_mm(rows, weight.t(), one, one, out_dtype=torch.float32) * row_factors * weight_factors
    return (product if bias is None else product + bias.float()).to(torch.bfloat16)


def load_fa3(args):
    """Registers `torch.ops.fa3_fwd.fwd`: q, k, v as [batch, tokens, heads, head dimension]."""
    if not args.fa3:
        raise Skip("FlashAttention 3 was not given with --fa3.")
    torch.ops.load_library(os.path.join(args.fa3, "fa3_fwd", "_C.abi3.so"))
