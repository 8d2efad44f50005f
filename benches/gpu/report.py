"""Writes docs/gpu.md from the results of runs on GPUs.

    python3 benches/gpu/report.py [RESULTS.json ...] [--out docs/gpu.md]

Every number comes with its card, date, commit and command. Without results the page states that nothing has
been measured yet, and lists the planned measurements. Results of `--cpu` are refused: they say nothing about
a GPU.
"""

import argparse
import json
import sys
from pathlib import Path

import goals

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {  # values with a separate column, and their format
    "ms": ("ms", ".2f"), "min_ms": ("least ms", ".2f"), "host_ms": ("host ms", ".2f"), "first_s": ("first call s", ".2f"),
    "excess_s": ("its excess s", ".2f"),
    "tflops": ("TFLOP/s", ".0f"), "tb_per_s": ("TB/s", ".2f"), "gb_per_s": ("GB/s", ".0f"), "kernels": ("kernels", ".0f"),
    "busy share": ("busy", ".1%"), "load_s": ("loading s", ".1f"), "seconds": ("s", ".1f"), "peak_gb": ("peak GB", ".2f"),
    "planned_gb": ("planned GB", ".2f"), "relative_l2": ("relative L2", ".1e"), "relative L2": ("relative L2", ".1e"),
    "relative L2, allowed": ("allowed", ".1e"),
    "PSNR dB": ("PSNR dB", ".1f"), "outside_ms": ("outside steps ms", ".1f"), "ms of libtorch": ("libtorch ms", ".3f"),
    "times faster": ("times faster", ".1f"),
}  # fmt: skip
STAGES = {
    "ratios": "kontext over its opponents",
    "speed": "kontext",
    "opponents": "Opponents",
    "correctness": "Correctness",
    "card": "The card",
    "facts": "Ceilings",
    "faults": "Planted faults",
}
HEAD = """# On a GPU

Written by `benches/gpu/report.py` from the results of runs of the kit. To make such a run:

```sh
cargo xtask gpu-kit                                      # where Rust is: the folder target/gpu-kit
bash benches/gpu/check.sh target/gpu-kit OUT             # where the GPU is: python3 with torch 2.11.0, no Rust, no network
python3 benches/gpu/report.py OUT/results.json           # this page
```
"""
NOT_YET = """
**Not measured yet.** No machine with a GPU was at hand. A run will measure, within 560 s on an H100:

- **correctness** against the CPU, in f32 (without TF32) and bf16: each own kernel against f64 at a few rows and at 8704,
  with its TB/s next to libtorch's operations for the same work, and the time of its compilation; a step by kernels
  against one without and one in f32, in bf16 and with products in fp8, and an autoencoder likewise in bf16; each kernel
  of attention, and which one libtorch picks; edits, generation, true CFG, several references, img2img, sessions, batches,
  repeated edits from the cache; every stored form of weights; LoRAs next to the weights and fused; staged and streamed
  models, bit for bit; the autoencoder whole and in tiles; T5 and CLIP; noise; the shipped model's image; ten runs at once;
  too little memory, cancelled runs, damaged weights; a training step and the trainer's loop;
- **speed** of a model of the published size (12 B) with random weights: steps of edits at 1024x1024 and 512x512 and of
  text-to-image, by own kernels and without, on the device and on the host, with the first call's excess, also of a new
  size; with FlashAttention 3 in bf16 and fp8; kernels a step, the share in which the device is busy, what is prepared once
  a run, text encoders, autoencoder by own kernels and without, a whole run cold and repeated; fp8 and Q4_0, resident,
  staged and streamed, with the peak of memory next to its plan; 3 and 6 blocks quantised to fp8 at load, by own kernels
  and without; attention by each kernel at 8704 and 4608 tokens; a LoRA's training step;
- **opponents** on the same card in the same run: diffusers eager, with flash attention, with fused QKV, compiled by regions,
  in fp8 by rows, and with FlashAttention 3 in fp8;
- **ratios** of kontext's times to each of theirs;
- **the card**: clocks, copy bandwidth, matrix products in f32, TF32, bf16 and fp8 (by rows and by tensors), the attention
  that libtorch picks at 8704 tokens and what each backend takes, strided and dense.
"""
COUNTED = """## Counted without a GPU

A step of an edit at 1024x1024 of the published model in bf16 or with the blocks' weights and products in fp8, as
`gpu-kit account` counts it on a CPU: libtorch's operations that compute, by its own callbacks; launches of own kernels, by
a target that only counts; the bytes that operations other than products and attention read and write (U is one pass over
the sequence, 53 MB); and the time of the host to issue a step.

| step | products and attention | other operations | own launches | bytes of both | host |
| --- | ---: | ---: | ---: | ---: | ---: |
| bf16, without kernels | 364 | 616 | 0 | 2889 U = 155 GB | 10.9 ms |
| bf16, with kernels | 364 | 78 | 134 | 990 U = 53 GB | 8.9 ms |
| fp8, without kernels | 364 | 3399 | 0 | 5978 U = 320 GB |  |
| fp8, with kernels | 326 | 2 | 229 | 924 U = 49 GB |  |

In bf16 76 of the other operations in either row, 456 U of the bytes, are the GELU of the MLP, which CUDA computes within
the product; in fp8 it is an operation of its own. A product in fp8 counts as one operation. An operation can launch more
than one kernel on a GPU; the kit counts those there.

The host's time is of a model of all 57 blocks with a width of 64 (80 without kernels) and 12 tokens, whose computing takes next
to nothing, by one thread on two cores of a Zen 5 EPYC; own launches do nothing. A GPU's driver adds its share for each launch.
In fp8 it is not measured: a CPU multiplies in several operations.
"""


def number(value, form):
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    return format(value, form)


def rest(row, shown):
    values = [(key, value) for key, value in row["values"].items() if key not in shown and not key.endswith((", allowed", ", at least"))]
    text = [f"{key} {number(value, '.4g') if isinstance(value, float) else value}" for key, value in values]
    return "; ".join([*text, row["note"]] if row["note"] else text)


def table(rows):
    """Formats a table with a column for each value of COLUMNS that occurs in a row."""
    shown = [key for key in COLUMNS if any(key in row["values"] for row in rows)]
    heads = ["", "", *(COLUMNS[key][0] for key in shown), ""]
    lines = [line(heads), line(["---", "---", *["---:"] * len(shown), "---"])]
    for row in rows:
        status = "" if row["status"] == "measured" else row["status"]
        cells = [number(row["values"][key], COLUMNS[key][1]) if key in row["values"] else "" for key in shown]
        lines.append(line([row["name"], status, *cells, rest(row, shown)]))
    return "\n".join(lines)


def line(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def ratios(rows):
    lines = [line(["", "kontext ms", "opponent ms", "ratio"]), line(["---", "---:", "---:", "---:"])]
    for row in rows:
        values = row["values"]
        cells = [number(values["kontext_ms"], ".2f"), number(values["opponent_ms"], ".2f"), number(values["ratio"], ".3f")]
        lines.append(line([row["name"], *cells]))
    return "\n".join(lines)


def goal_table(rows):
    """Formats the goals with what was measured."""
    lines = [line(["", "goal", "measured", ""]), line(["---", "---", "---:", "---"])]
    for goal, got, verdict in goals.judged(rows):
        lines.append(line([goal.text, goals.bound(goal), goals.number(goal, got), verdict]))
    return "\n".join(lines)


def count(rows):
    """Counts the rows of each status: «95 passed, 2 failed»."""
    statuses = list(dict.fromkeys(row["status"] for row in rows))
    return ", ".join(f"{sum(row['status'] == status for row in rows)} {status}" for status in statuses)


def section(results):
    """Formats the section of one run."""
    rows, run, kit = results["rows"], results["run"], results["kit"]
    card = next((row["values"] for row in rows if row["name"] == "card"), {})
    text = [f"## {card.get('name', 'Unknown card')}, {run['date']}", ""]
    text.append(f"Commit {kit['commit']} of {kit['date']}; `{run['command']}`; {run['seconds']:.0f} s. {count(rows)}.")
    unended = [f"{stage['stage']} {stage['status']}: {stage['note']}" for stage in results["stages"] if stage["status"] != "ended"]
    text += [f"Stages that did not end: {'; '.join(unended)}."] if unended else []
    text += ["", "### Goals", "", goal_table(rows)]
    for stage, title in STAGES.items():
        own = [row for row in rows if row["stage"] == stage]
        if not own:
            continue
        text += ["", f"### {title}", "", f"{count(own)}.", "", ratios(own) if stage == "ratios" else table(own)]
    return "\n".join(text)


def page(all_results):
    body = "\n\n".join(section(results) for results in all_results)
    measured = f"\n{body}\n" if all_results else f"{NOT_YET}\n## Goals\n\n{goal_table([])}\n"
    return f"{HEAD}{measured}\n{COUNTED}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", help="results.json of runs on GPUs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu.md", help="the page (default: docs/gpu.md)")
    args = parser.parse_args()
    all_results = [json.loads(path.read_text(encoding="utf-8")) for path in args.results]
    for path, results in zip(args.results, all_results, strict=True):
        if results["run"]["cpu"]:
            sys.exit(f"{path} is of a run with --cpu, which says nothing of a GPU; leave it away")
    draft = args.out.with_name(args.out.name + ".new")
    draft.write_text(page(all_results), encoding="utf-8")
    draft.replace(args.out)
    print(f"wrote {args.out}")
    for path, results in zip(args.results, all_results, strict=True):
        print(path, *(f"  {text}" for text in goals.lines(results["rows"])), sep="\n")


if __name__ == "__main__":
    main()
