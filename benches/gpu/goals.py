"""The goals of the fast path on an H100, and if the rows of a run meet them.

Each goal reads one number from rows by their names. A row that is absent, skipped, failed or without the
value leaves its goal «not measured».
"""

from collections.abc import Callable
from typing import Any, NamedTuple

MET, MISSED, UNKNOWN = "met", "missed", "not measured"
GIB = (1 << 30) / 1e9  # in GB
GOOD = ("passed", "measured", "failed")  # a failed row has values, too: another of its checks failed
EDIT, T2I = "edit 1024", "t2i 1024"


class Goal(NamedTuple):
    """A goal: its text, the function that reads its number from rows, and its bound."""

    text: str
    read: Callable[[dict], Any]
    bound: float
    unit: str
    at_least: bool = False

    def result(self, found):
        """Returns the number, or None, and the verdict. `found` maps (stage, name) to a row's values."""
        try:
            number = self.read(found)
        except (KeyError, TypeError, ZeroDivisionError):
            return None, UNKNOWN
        if not isinstance(number, int | float) or isinstance(number, bool):
            return None, UNKNOWN
        holds = number >= self.bound if self.at_least else number <= self.bound
        return number, MET if holds else MISSED


def value(name, key, stage="speed"):
    return lambda found: found[stage, name][key]


def least(key, *names):
    """Reads the smallest value of the rows that have it."""

    def read(found):
        rows = [found.get(("speed", name), {}) for name in names]
        return min((row[key] for row in rows if key in row), default=None)

    return read


def over(rival, name=EDIT):
    """Reads how many times as fast kontext's step is as an opponent's."""
    return lambda found: found["opponents", f"{name}/{rival}"]["ms"] / found["speed", f"{name}/kontext"]["ms"]


def excess(found):
    """Reads the first step of the process over a steady one, with the compilation of the kernels."""
    row = found["speed", f"{EDIT}/kontext"]
    return row["compile_s"] + row["excess_s"]


def goals():
    """Returns all goals, in the order of the table."""
    whole, new_size = f"{EDIT}/kontext, whole run", "edit 768, a new size/kontext"
    fp8 = [f"{EDIT}/kontext, fp8 {placement}" for placement in ("resident", "staged")]
    fp8_t2i = [f"{T2I}/kontext, fp8 {placement}" for placement in ("resident", "staged")]
    decode, encode = (f"vae {direction} 1024/kontext, bf16" for direction in ("decode", "encode"))
    return [
        Goal("edit step, bf16", value(f"{EDIT}/kontext", "ms"), 265, "ms"),
        Goal("edit step, bf16, times as fast as diffusers eager", over("eager"), 1.5, "", at_least=True),
        Goal("edit step, bf16, times as fast as diffusers compiled", over("compiled"), 1.03, "", at_least=True),
        Goal("text-to-image step, bf16", value(f"{T2I}/kontext", "ms"), 118, "ms"),
        Goal("edit step, fp8", least("ms", *fp8), 200, "ms"),
        Goal("text-to-image step, fp8", least("ms", *fp8_t2i), 90, "ms"),
        Goal("edit outside its steps, cold", value(whole, "outside_ms"), 90, "ms"),
        Goal("edit outside its steps, repeated", value(whole, "repeat_outside_ms"), 40, "ms"),
        Goal("autoencoder's decoding, 1024x1024, bf16", value(decode, "ms"), 30, "ms"),
        Goal("autoencoder's encoding, 1024x1024, bf16", value(encode, "ms"), 20, "ms"),
        Goal("peak of an edit step, bf16, without the other parts (24 GiB)", value(f"{EDIT}/kontext", "step_peak_gb"), 24 * GIB, "GB"),
        Goal("peak of an edit, fp8, staged (14 GiB)", value(fp8[1], "peak_gb"), 14 * GIB, "GB"),
        Goal("first step over a steady one, with compilation", excess, 1.5, "s"),
        Goal("first step of a new size over a steady one", value(new_size, "excess_s"), 0.3, "s"),
    ]


def judged(rows):
    """Yields each goal with its number, or None, and its verdict."""
    found = {(row["stage"], row["name"]): row["values"] for row in rows if row["status"] in GOOD}
    for goal in goals():
        yield goal, *goal.result(found)


def bound(goal):
    sign = "at least" if goal.at_least else "at most"
    return f"{sign} {goal.bound:.4g} {goal.unit}".strip()


def number(goal, got):
    return "" if got is None else f"{got:.4g} {goal.unit}".strip()


def lines(rows):
    """Returns a line of text for each goal."""
    return [
        f"{goal.text}: {verdict} ({number(goal, got) + ', ' if got is not None else ''}{bound(goal)})"
        for goal, got, verdict in judged(rows)
    ]
