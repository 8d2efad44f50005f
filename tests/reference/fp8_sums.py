"""Simulates sums of fp8 products with the accumulators of Hopper's tensor cores, for docs/quantisation.md.

    python tests/reference/fp8_sums.py

An accumulator keeps 14 bits of a sum, truncated after every 32 products, whose own sum is exact. Without fast
accumulation it is added to one in f32 every 128 products. Values are normal, rounded to e4m3 by row. Printed are
relative L2 distances of 64 x 64 sums from exact ones. Needs torch.
"""

import torch

BITS, TOGETHER, PROMOTED, SIDE = 14, 32, 128, 64


def rounded(count):
    values = torch.randn(SIDE, count)
    return (values * (448 / values.abs().amax(1, keepdim=True))).to(torch.float8_e4m3fn).double()


def truncated(values):
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.trunc(mantissa * 2**BITS) / 2**BITS, exponent)


def off(a, b, promoted):
    """Returns the distance of the simulated sums from the exact ones."""
    whole = part = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    for start in range(0, a.shape[1], TOGETHER):
        end = start + TOGETHER
        part = truncated(part + a[:, start:end] @ b[:, start:end].T)
        if promoted and end % PROMOTED == 0:
            whole, part = whole + part, torch.zeros_like(part)
    exact = a @ b.T
    return ((whole + part - exact).norm() / exact.norm()).item()


torch.manual_seed(0)
for count in (3072, 12_288, 15_360):
    a, b = rounded(count), rounded(count)
    print(f"{count} products: {off(a, b, False):.2e}, without fast accumulation {off(a, b, True):.2e}")
