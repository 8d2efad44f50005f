"""Images that both sides draw from a name instead of storing them."""

import torch

import synthetic


def drawn(name, width, height, noise=0.0):
    """Draws an image from its name, uint8 [height, width, 3]: blocks of 8 pixels, grain, and noise.

    Products and sums are separate, in f32, so that both sides round alike.
    """
    coarse = synthetic.draw(f"{name}.coarse", (height // 8 + 1, width // 8 + 1, 3))
    blocks = coarse.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width]
    levels = blocks * 50.0 + 128.0
    levels = levels + synthetic.draw(f"{name}.grain", (height, width, 3)) * 9.0
    levels = levels + synthetic.draw(f"{name}.noise", (height, width, 3)) * noise
    return levels.round().clamp(0, 255).to(torch.uint8).numpy()
