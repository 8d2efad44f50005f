//! Activations rounded to fp8, by row.

use std::cell::RefCell;

use kontext_core::{Error, Result};
use tch::{Kind, Tensor};

use crate::scope::scope;

/// Largest value of e4m3.
const LARGEST: f64 = 448.0;
/// Magnitude by which a row of smaller ones is divided.
const LEAST: f64 = 1e-12;

/// Rows of activations as 8-bit floats (e4m3), each with a factor: a row is about its codes times its factor.
///
/// They are made once for all layers that have the same input ([`Linear::forward_fp8`](crate::Linear::forward_fp8)), by
/// [`Fp8Rows::quantise`] or by a kernel that writes them instead of the activations.
///
/// # Example
/// ```
/// use kontext_core::{Kind, Tensor};
/// use kontext_nn::Fp8Rows;
/// let x = Tensor::from_slice(&[1.0_f32, -2.0, 0.001, 0.0]).reshape([2, 2]);
/// let rows = Fp8Rows::quantise(&x)?;
/// assert_eq!((rows.codes().kind(), rows.factors().size()), (Kind::Float8e4m3fn, vec![2, 1]));
/// assert!(rows.dense(Kind::Float)?.allclose(&x, 1e-6, 0.0, false)); // halves and the largest are exact
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Fp8Rows {
    codes: Tensor,
    factors: Tensor,
}

impl Fp8Rows {
    /// Takes codes e4m3 [.., D] and factors f32 [.., 1] as a kernel returns them.
    ///
    /// # Errors
    /// [`Error::Shape`] for factors of other rows, [`Error::InvalidArgument`] for other kinds.
    pub fn new(codes: Tensor, factors: Tensor) -> Result<Self> {
        let kinds = (codes.kind(), factors.kind());
        if kinds != (Kind::Float8e4m3fn, Kind::Float) {
            let expected = "codes in Float8e4m3fn and factors in Float";
            return Err(Error::invalid("rows in fp8", expected, format!("{kinds:?}")));
        }
        let mut rows = codes.size();
        if let Some(last) = rows.last_mut() {
            *last = 1;
        }
        if rows.is_empty() || factors.size() != rows {
            return Err(Error::Shape {
                tensor: "factors",
                expected: "[.., 1], one for each row of the codes",
                got: factors.size(),
            });
        }
        Ok(Self { codes, factors })
    }

    /// Rounds `x` [.., D] of any floating dtype to the nearest codes, by factors that map the largest magnitude of
    /// each row to the largest code, 448. A row with an infinity or a NaN has NaNs.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails, as it does for a D of 0.
    pub fn quantise(x: &Tensor) -> Result<Self> {
        let largest = x
            .f_abs()?
            .f_amax([-1], true)?
            .f_to_kind(Kind::Float)?
            .f_clamp_min(LEAST)?;
        // In the order of the fused kernels: the scale is a quotient in f32, the factor a product.
        let scale = Tensor::f_full_like(&largest, LARGEST)?.f_div(&largest)?;
        let codes = x.f_mul(&scale)?;
        Ok(Self {
            codes: codes.f_contiguous()?.f_to_kind(Kind::Float8e4m3fn)?,
            factors: largest.f_mul_scalar(1.0 / LARGEST)?,
        })
    }

    /// Returns the codes, e4m3 [.., D].
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// Returns the factors, f32 [.., 1].
    pub fn factors(&self) -> &Tensor {
        &self.factors
    }

    /// Returns the codes times the factors, [.., D] in this kind.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn dense(&self, kind: Kind) -> Result<Tensor> {
        Ok(self
            .codes
            .f_to_kind(Kind::Float)?
            .f_mul(&self.factors)?
            .f_to_kind(kind)?)
    }

    /// Returns the rows `start..start + count` of the dimension before the last, in the same memory.
    ///
    /// # Errors
    /// [`Error::Torch`] if they are out of range.
    pub fn rows(&self, start: i64, count: i64) -> Result<Self> {
        Ok(Self {
            codes: self.codes.f_narrow(-2, start, count)?,
            factors: self.factors.f_narrow(-2, start, count)?,
        })
    }

    /// Returns codes [N, D] and factors [N, 1], each contiguous.
    pub(crate) fn flat(&self) -> Result<(Tensor, Tensor)> {
        let flat = |x: &Tensor| -> Result<Tensor> {
            let last = x.size().last().copied().unwrap_or(1);
            Ok(x.f_contiguous()?.f_view([-1, last])?)
        };
        Ok((flat(&self.codes)?, flat(&self.factors)?))
    }
}

thread_local! {
    /// A value for each scope in which layers unpack.
    static UNPACKED: RefCell<Vec<()>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f`, in which layers that this thread computes unpack their weights instead of multiplying in fp8
/// ([`Weights::fp8_products`](crate::Weights::fp8_products)).
pub fn without_fp8<T>(f: impl FnOnce() -> T) -> T {
    scope(&UNPACKED, (), f)
}

/// Returns `true` if this thread multiplies in fp8 where it can.
pub(crate) fn is_on() -> bool {
    UNPACKED.with_borrow(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};

    use super::*;

    fn draw(seed: u64) -> Tensor {
        let x = noise::randn(&[2, 5, 64], seed, Kind::Float, Device::Cpu).unwrap();
        // Rows of different sizes, which one factor for all would not serve.
        x * Tensor::from_slice(&[1e-5_f32, 1.0, 300.0, 0.0, 1e-14]).reshape([5, 1])
    }

    #[test]
    fn a_value_is_the_nearest_code_and_the_largest_of_a_row_is_448() {
        let x = draw(1);
        let rows = Fp8Rows::quantise(&x).unwrap();
        let codes = rows.codes().to_kind(Kind::Float);
        let largest = codes.abs().amax([-1], false);
        assert!(largest.narrow(1, 0, 3).eq(448.0).all().int64_value(&[]) == 1);
        assert_eq!(largest.narrow(1, 3, 1).max().double_value(&[]), 0.0);
        // Every code, by its bits, in order of its value: none is nearer.
        let all = Tensor::arange(127, (Kind::Uint8, Device::Cpu))
            .view_dtype(Kind::Float8e4m3fn)
            .to_kind(Kind::Double);
        let all = Tensor::cat(&[&all, &(-&all)], 0);
        let scaled = x.to_kind(Kind::Double) / rows.factors().to_kind(Kind::Double);
        let nearest = (scaled.unsqueeze(-1) - all).abs().amin([-1], false);
        let off = (codes.to_kind(Kind::Double) - scaled).abs() - nearest;
        // The reciprocal and the factor are rounded to f32.
        assert!(off.max().double_value(&[]) < 448.0 * 3e-7, "{off}");
    }

    #[test]
    fn a_strided_input_of_16_bits_has_the_codes_of_its_values() {
        for kind in [Kind::BFloat16, Kind::Half] {
            let x = draw(2).to_kind(kind);
            let wide = Fp8Rows::quantise(&x.to_kind(Kind::Float)).unwrap();
            let strided = Tensor::cat(&[&x, &x], -1).narrow(-1, 64, 64);
            assert!(!strided.is_contiguous());
            let rows = Fp8Rows::quantise(&strided).unwrap();
            assert_eq!(
                rows.codes().view_dtype(Kind::Uint8),
                wide.codes().view_dtype(Kind::Uint8)
            );
            assert_eq!(rows.factors(), wide.factors());
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let x = Tensor::from_slice(&[1.0_f32, f32::INFINITY, 1.0, f32::NAN, 1.0, 2.0]).reshape([3, 2]);
        let dense = Fp8Rows::quantise(&x).unwrap().dense(Kind::Float).unwrap();
        let finite = dense.isfinite().all_dim(1, false);
        assert_eq!(Vec::<bool>::try_from(&finite).unwrap(), [false, false, true]);
    }

    #[test]
    fn other_kinds_and_other_rows_are_refused() {
        let codes = || Tensor::zeros([2, 3, 8], (Kind::Float8e4m3fn, Device::Cpu));
        let factors = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        assert!(Fp8Rows::new(codes(), factors(&[2, 3, 1])).is_ok());
        assert!(Fp8Rows::new(codes(), factors(&[2, 3])).is_err());
        assert!(Fp8Rows::new(codes(), factors(&[2, 3, 8])).is_err());
        let error = Fp8Rows::new(factors(&[3, 8]), factors(&[3, 1]))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "invalid rows in fp8: expected codes in Float8e4m3fn and factors in Float, got (Float, Float)"
        );
    }
}
