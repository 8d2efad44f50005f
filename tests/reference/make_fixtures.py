"""Writes the fixtures next to this file: `python make_fixtures.py [PART ...]`, by default all of PARTS.

`bfl` and `tokens` are only made if named: they read files outside Python packages.
"""

import importlib
import sys

import torch

PARTS = ["noise", "resize", "vae", "text", "dit", "kept", "edited", "schedule", "samplers", "geometry", "metrics", "pdist", "kid", "gradients", "adversarial", "forms", "quant", "lora", "lora_names", "inpaint"]


def main():
    torch.set_num_threads(1)  # one order of summation, for byte-identical reruns
    for part in sys.argv[1:] or PARTS:
        importlib.import_module(f"parts.{part}").make()
        print(f"{part}: written")


if __name__ == "__main__":
    main()
