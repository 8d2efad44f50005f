//! One kernel's work: its errors against f64, and its time.

use anyhow::ensure;
use kontext::{Device, Kind, Tensor};
use kontext_core::check::relative_l2;

use crate::pace::pace;
use crate::row::Outcome;

/// Largest error, in errors of the exact values' own rounding: sums in f32 and the device's approximations add little.
const OVER_ROUNDING: f64 = 1.02;
/// Largest code of e4m3.
const LARGEST: f64 = 448.0;

/// A kernel's work. Each function returns the same results, except that of the kernel's launch.
pub(super) struct Work<'a> {
    /// The results in f64.
    pub(super) exact: Vec<Tensor>,
    /// The kernel's results, from copies of what it changes.
    pub(super) results: &'a dyn Fn() -> anyhow::Result<Vec<Tensor>>,
    /// libtorch's results, by its own operations.
    pub(super) plain: &'a dyn Fn() -> anyhow::Result<Vec<Tensor>>,
    /// The launch of the kernel.
    pub(super) launch: &'a dyn Fn() -> anyhow::Result<()>,
    /// Bytes that must be moved: each read and each written once.
    pub(super) bytes: i64,
    /// The rounding of results: the least error.
    pub(super) round: fn(&Tensor) -> Tensor,
}

impl Work<'_> {
    /// Records errors, times and rates.
    pub(super) fn measure(&self, on: Device, outcome: &mut Outcome) -> anyhow::Result<()> {
        let rounded: Vec<_> = self.exact.iter().map(self.round).collect();
        let least = farthest(&rounded, &self.exact)?;
        drop(rounded);
        let [got, plain] = [(self.results)()?, (self.plain)()?].map(|results| farthest(&results, &self.exact));
        outcome.at_most("relative L2", got?, OVER_ROUNDING * least);
        outcome.value("relative L2 of libtorch", plain?);
        let own = pace(on, || (self.launch)())?;
        let libtorch = pace(on, || (self.plain)())?;
        outcome.value("ms", own.ms);
        outcome.value("tb_per_s", self.bytes as f64 / own.ms / 1e9);
        outcome.value("ms of libtorch", libtorch.ms);
        outcome.value("times faster", libtorch.ms / own.ms);
        outcome.value("ms of the first call", own.first_ms);
        Ok(())
    }
}

/// Returns the largest relative L2 error of the results.
fn farthest(results: &[Tensor], exact: &[Tensor]) -> anyhow::Result<f64> {
    ensure!(results.len() == exact.len(), "another number of results");
    let mut farthest = 0.0_f64;
    for (result, exact) in results.iter().zip(exact) {
        ensure!(
            result.size() == exact.size(),
            "a result {:?} for {:?}",
            result.size(),
            exact.size()
        );
        let error = relative_l2(result, exact)?;
        farthest = farthest.max(if error.is_nan() { f64::INFINITY } else { error });
    }
    Ok(farthest)
}

/// Rounds exact values to bf16.
pub(super) fn to_bf16(exact: &Tensor) -> Tensor {
    exact.to_kind(Kind::Float).to_kind(Kind::BFloat16)
}

/// Rounds rows of exact values to e4m3, each with its factor.
pub(super) fn to_e4m3(exact: &Tensor) -> Tensor {
    values(&quantise(exact))
}

/// Quantises rows to e4m3 by libtorch's operations; returns codes and factors.
pub(super) fn quantise(x: &Tensor) -> (Tensor, Tensor) {
    let wide = x.to_kind(Kind::Float);
    let factors = (wide.abs().amax([-1], true) / LARGEST).clamp_min(1e-30);
    ((wide / &factors).to_kind(Kind::Float8e4m3fn), factors)
}

/// Returns the values of quantised rows, in f32.
pub(super) fn values((codes, factors): &(Tensor, Tensor)) -> Tensor {
    codes.to_kind(Kind::Float) * factors
}

/// Returns the bytes of tensors.
pub(super) fn bytes_of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> i64 {
    let bytes = |x: &Tensor| x.numel() as i64 * x.kind().elt_size_in_bytes() as i64;
    tensors.into_iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_or_one_that_is_no_number_is_far() {
        let exact = [Tensor::from_slice(&[1.0, 2.0]), Tensor::from_slice(&[3.0])];
        let with = |last: f64| [Tensor::from_slice(&[1.0, 2.0]), Tensor::from_slice(&[last])];
        assert_eq!(farthest(&with(3.0), &exact).expect("compared"), 0.0);
        assert!((farthest(&with(6.0), &exact).expect("compared") - 1.0).abs() < 1e-12);
        assert_eq!(farthest(&with(f64::NAN), &exact).expect("compared"), f64::INFINITY);
        assert!(farthest(&with(3.0)[..1], &exact).is_err());
    }

    #[test]
    fn quantised_rows_are_within_a_sixteenth() {
        let x = Tensor::from_slice(&[1.0_f32, -0.37, 300.0, 0.0, 0.0, 0.0]).reshape([2, 3]);
        let off = (values(&quantise(&x)) - &x).abs();
        let bound = x.abs() / 16.0 + 1e-3;
        assert_eq!(off.less_equal_tensor(&bound).all().int64_value(&[]), 1);
    }
}
