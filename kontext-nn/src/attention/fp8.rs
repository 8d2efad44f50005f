//! Rounding of heads to fp8.

use tch::{Kind, Tensor};

use kontext_core::Result;

/// Largest value of e4m3.
const LARGEST: f64 = 448.0;
/// Smallest factor, for heads of zeros.
const SMALLEST: f64 = 1e-30;

/// Rounds heads to e4m3, each by a factor that maps its largest magnitude to the largest code.
///
/// # Shapes
/// `x` [B, T, H, D]; returns codes [B, T, H, D], contiguous, and factors [B, H] in f32: `x` is about codes times
/// factors.
pub(super) fn quantise(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let largest = x.f_abs()?.f_amax([1, 3], true)?.f_to_kind(Kind::Float)?;
    let factors = largest.f_div_scalar(LARGEST)?.f_clamp_min(SMALLEST)?;
    let codes = x.f_div(&factors)?.f_contiguous()?.f_to_kind(Kind::Float8e4m3fn)?;
    Ok((codes, factors.f_squeeze_dim(3)?.f_squeeze_dim(1)?.f_contiguous()?))
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};

    use super::*;
    use crate::attention::attend_tokens;

    fn draw(seed: u64) -> Tensor {
        let x = noise::randn(&[2, 96, 3, 64], seed, Kind::Float, Device::Cpu).unwrap();
        // Heads of different sizes, which one factor for all would not serve.
        let sizes = Tensor::from_slice(&[1e-3_f32, 1.0, 300.0]).reshape([3, 1]);
        x * sizes
    }

    fn widened(x: &Tensor) -> Tensor {
        let (codes, factors) = quantise(x).unwrap();
        assert_eq!((codes.kind(), factors.size()), (Kind::Float8e4m3fn, vec![2, 3]));
        codes.to_kind(Kind::Float) * factors.reshape([2, 1, 3, 1])
    }

    /// Of 4 significant bits, rounding keeps each value within a 16th of itself, and below the smallest normal number
    /// (2^-6, of a largest 448) within half a step of 2^-9.
    #[test]
    fn a_rounded_value_is_within_half_a_step() {
        let x = draw(0);
        let off = (widened(&x) - &x).abs();
        let step = x.abs().amax([1, 3], true) / LARGEST * (0.5 / 512.0);
        let bound = (x.abs() / 16.0).maximum(&step) * (1.0 + 1e-5);
        assert!(off.less_equal_tensor(&bound).all().int64_value(&[]) == 1);
        assert!(off.max().double_value(&[]) > 0.0);
    }

    #[test]
    fn the_largest_value_and_zeros_are_exact() {
        let (codes, factors) = quantise(&Tensor::zeros([1, 4, 2, 8], (Kind::BFloat16, Device::Cpu))).unwrap();
        assert_eq!(codes.to_kind(Kind::Float).abs().max().double_value(&[]), 0.0);
        assert!(factors.isfinite().all().int64_value(&[]) == 1);
        let x = draw(1);
        let largest = |x: &Tensor| x.abs().amax([1, 3], false);
        assert!(largest(&widened(&x)).allclose(&largest(&x), 1e-6, 0.0, false));
    }

    /// The loss of attention on rounded heads, relative to f32 by the L2 norm, is that of the values' rounding.
    #[test]
    fn attention_of_rounded_heads_is_within_four_percent() {
        let unit = |seed| draw(seed) / draw(seed).abs().amax([1, 3], true) * 3.0;
        let (q, k, v) = (unit(2), unit(3), unit(4));
        let exact = attend_tokens(&q, &k, &v).unwrap();
        let rounded = attend_tokens(&widened(&q), &widened(&k), &widened(&v)).unwrap();
        let error = ((&rounded - &exact).norm() / exact.norm()).double_value(&[]);
        println!("relative error {error:.4}");
        assert!((1e-3..0.04).contains(&error), "{error}");
    }
}
