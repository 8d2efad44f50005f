//! Inputs of the kernels' tests, and the orders in which the emulator runs them.
#![allow(dead_code, reason = "not every test uses all")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kontext_core::{Device, Kind, Tensor, noise};
use kontext_emulator::{Emulator, Order};
use kontext_kernels::{KernelShape, Kernels};

/// Flux's blocks.
pub(crate) const FLUX: [i64; 3] = [3072, 128, 12_288];
/// Those of the repository's small model: rows that end within a warp.
pub(crate) const SMALL: [i64; 3] = [192, 32, 768];
/// Rows of two and a quarter warps, and an MLP that is no multiple of the width.
pub(crate) const ODD: [i64; 3] = [576, 64, 1336];

/// Relative L2 error of rounding to bf16: uniform over half a step of 2^-8, for values spread over a binade, 1.66e-3.
/// The sums in f32 add a thousandth of it.
pub(crate) const BF16: f64 = 1.75e-3;

/// Likewise to e4m3, in steps of 2^-4 of a binade: 2.65e-2; more where small values are below its normal range.
pub(crate) const E4M3: f64 = 2.9e-2;

pub(crate) const ORDERS: [Order; 4] = [Order::Forward, Order::Backward, Order::Shuffled(1), Order::Shuffled(2)];

pub(crate) fn shape([width, head_dim, mlp_width]: [i64; 3]) -> KernelShape {
    KernelShape::new(width, head_dim, mlp_width).unwrap()
}

pub(crate) fn kernels(sizes: [i64; 3], order: Order) -> Kernels {
    Kernels::launched_by(Arc::new(Emulator::new(order)), &shape(sizes))
}

/// Runs `compute` in each order, asserts equal bits, and returns the results of the first.
pub(crate) fn in_all_orders<const N: usize>(sizes: [i64; 3], compute: impl Fn(&Kernels) -> [Tensor; N]) -> [Tensor; N] {
    let mut results = ORDERS.iter().map(|order| compute(&kernels(sizes, *order)));
    let first = results.next().unwrap();
    for (result, order) in results.zip(&ORDERS[1..]) {
        for (a, b) in first.iter().zip(&result) {
            assert!(bits(a).equal(&bits(b)), "{order:?} gives other bits");
        }
    }
    first
}

/// The bits of a tensor, by which NaNs are equal, too.
fn bits(x: &Tensor) -> Tensor {
    let kind = match x.kind().elt_size_in_bytes() {
        1 => Kind::Uint8,
        2 => Kind::Int16,
        _ => Kind::Int,
    };
    x.contiguous().view_dtype(kind)
}

/// Normal noise in bf16, `x * deviation + mean`.
pub(crate) fn random(size: &[i64], seed: u64, deviation: f64, mean: f64) -> Tensor {
    let x = noise::randn(size, seed, Kind::Float, Device::Cpu).unwrap();
    (x * deviation + mean).to_kind(Kind::BFloat16)
}

/// Normal noise in f32 around one.
pub(crate) fn weights(size: &[i64], seed: u64) -> Tensor {
    noise::randn(size, seed, Kind::Float, Device::Cpu).unwrap() * 0.3 + 1.0
}

pub(crate) fn wide(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Double)
}

/// Asserts that `x` is within `bound` of the f64 reference, and at most 1.02 times as far from it as the reference
/// rounded to the kind of `x`.
pub(crate) fn assert_rounded(x: &Tensor, reference: &Tensor, bound: f64) {
    let rounded = reference.to_kind(Kind::Float).to_kind(x.kind());
    assert_as_near(x, &rounded, reference, bound);
}

/// Asserts that `x` is within `bound` of the f64 reference, and at most 1.02 times as far from it as `best`.
pub(crate) fn assert_as_near(x: &Tensor, best: &Tensor, reference: &Tensor, bound: f64) {
    let error = kontext_core::check::relative_l2(x, reference).unwrap();
    let least = kontext_core::check::relative_l2(best, reference).unwrap();
    assert!(error < bound, "{error:e}, and {least:e} by rounding");
    assert!(error <= least * 1.02, "{error:e}, and {least:e} by rounding");
}

/// Asserts that rows of e4m3 with their factors are the reference quantised by row: within one code of 256 at the
/// few values whose rounding the last bit of f32 decides.
pub(crate) fn assert_quantised(codes: &Tensor, factors: &Tensor, reference: &Tensor) {
    let expected_factors = reference.abs().amax(-1_i64, true) / 448.0;
    let off = ((wide(factors) - &expected_factors) / &expected_factors).abs().max();
    assert!(off.double_value(&[]) < 1e-5, "factors are off by {off:?}");
    let best = (reference / &expected_factors)
        .to_kind(Kind::Float)
        .to_kind(Kind::Float8e4m3fn);
    let best = wide(&best) * &expected_factors;
    assert_as_near(&(wide(codes) * wide(factors)), &best, reference, E4M3);
}
