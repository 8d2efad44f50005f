"""Writes the fixtures beside this file: `python make_fixtures.py [PART ...]`, all of PARTS when none is named.

`bfl` and `tokens` are made only when named: they read what is no Python package.
"""

import importlib
import sys

import torch

PARTS = ["noise", "resize", "vae", "text", "dit", "schedule", "geometry", "metrics", "gradients", "forms", "quant", "lora"]


def main():
    torch.set_num_threads(1)  # one order of summation, so that a second run writes the same bytes
    for part in sys.argv[1:] or PARTS:
        importlib.import_module(f"parts.{part}").make()
        print(f"{part}: written")


if __name__ == "__main__":
    main()
