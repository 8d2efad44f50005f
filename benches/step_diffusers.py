"""Times one denoising step of diffusers' FluxTransformer2DModel, like `step.rs` for ours; prints JSON.

Full width and few blocks, random weights, f32 or bf16 on the CPU; 256 target, 256 reference and 512 text tokens.
"""

import argparse
import json
import statistics
import time

import diffusers
import torch
from diffusers import FluxTransformer2DModel

SIDE, TEXT = 256 // 16, 512
KINDS = {"f32": torch.float32, "bf16": torch.bfloat16}


def image_ids(t):
    """Returns the positions (t, y, x) of a grid's tokens, [rows * columns, 3]."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.stack([torch.full_like(rows, t), rows, columns], -1).reshape(-1, 3).float()


def model(double, single, kind):
    """Builds FLUX.1 [dev] at another depth, with the weights of its random initialisation."""
    config = {"num_layers": double, "num_single_layers": single, "guidance_embeds": True}
    return FluxTransformer2DModel(**config).eval().to(kind)


def inputs(kind):
    """Draws inputs in the model's dtype; positions are f32."""
    ids = torch.cat([image_ids(0), image_ids(1)])
    return {
        "hidden_states": torch.randn(1, len(ids), 64).to(kind),
        "encoder_hidden_states": torch.randn(1, TEXT, 4096).to(kind),
        "pooled_projections": torch.randn(1, 768).to(kind),
        "timestep": torch.tensor([1.0]).to(kind),
        "guidance": torch.tensor([2.5]).to(kind),
        "img_ids": ids,
        "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }


@torch.inference_mode()
def seconds(double, single, steps, kind):
    """Returns the wall-clock seconds of each step, after two warm-up steps."""
    transformer, given = model(double, single, kind), inputs(kind)
    times = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        transformer(**given)
        times.append(time.perf_counter() - start)
    return times[2:]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--double", type=int, default=1, help="double-stream blocks")
    parser.add_argument("--single", type=int, default=2, help="single-stream blocks")
    parser.add_argument("--steps", type=int, default=10, help="steps to time")
    parser.add_argument("--kind", choices=KINDS, default="f32", help="dtype of weights and arithmetic")
    args = parser.parse_args()
    times = seconds(args.double, args.single, args.steps, KINDS[args.kind])
    versions = {"threads": torch.get_num_threads(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    print(json.dumps({"median_s": statistics.median(times), "seconds": times} | versions))


if __name__ == "__main__":
    main()
