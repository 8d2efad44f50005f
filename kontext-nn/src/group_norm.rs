//! Group normalisation, alone and followed by SiLU, in either memory format.
//!
//! libtorch's CPU kernel sums channels-last memory one position after the other in f32: at 512x512 positions its
//! output is off by 2e-5, and the output of a whole autoencoder by 3.5e-4. Here the moments are those of many
//! short columns, each summed with few terms, and are joined in f64.

mod fused;

use kontext_core::{Device, Kind, Result};
use kontext_kernels::Kernels;
use tch::Tensor;

use crate::Weights;

/// Most positions that are summed in f32 one after the other. The moments of 512x512 positions are then exact
/// within 2e-7; columns that are half as long take a third more time, because their sums leave the first cache.
const POSITIONS: i64 = 1 << 13;

/// Values that are normalised at a time in bf16 and f16: their f32 copies, 1 MB, stay in the processor's cache.
const VALUES: i64 = 1 << 18;

/// Group normalisation over channels [B, C, H, W], with weight and bias, which are held in f32.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
    kernels: Option<Kernels>,
}

impl GroupNorm {
    /// Reads `weight` and `bias` `[channels]`.
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn new(w: &Weights, channels: i64, groups: i64, eps: f64) -> Result<Self> {
        let w = w.clone().kind(Kind::Float);
        Ok(Self {
            weight: w.tensor("weight", &[channels])?,
            bias: w.tensor("bias", &[channels])?,
            groups,
            eps,
            kernels: None,
        })
    }

    /// Normalises [B, C, H, W], keeping shape, dtype and memory format. Moments are exact within f32.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(normed) = self.by_kernels(x, false)? {
            return Ok(normed);
        }
        if !self.is_split(x) {
            return self.by_libtorch(x);
        }
        let out = channels_innermost(x)?.f_empty_like()?;
        self.by_columns(x, &out, false)
    }

    /// Computes `silu(norm(x))` as [`GroupNorm::forward`]; narrow dtypes are rounded once, after the SiLU.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(normed) = self.by_kernels(x, true)? {
            return Ok(normed);
        }
        if !self.is_split(x) {
            let mut normed = self.by_libtorch(x)?;
            // In place if no gradient is required: at a megapixel each copy takes 0.5 GB in f32.
            return Ok(if normed.requires_grad() {
                normed.f_silu()?
            } else {
                normed.f_silu_()?
            });
        }
        let out = channels_innermost(x)?.f_empty_like()?;
        self.by_columns(x, &out, true)
    }

    /// Computes [`GroupNorm::forward_silu`] of a tensor that nothing else uses, in its memory where possible:
    /// half of the operation's time is the system's, which clears new memory.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    #[expect(clippy::needless_pass_by_value, reason = "its memory is reused")]
    pub fn forward_silu_in_place(&self, x: Tensor) -> Result<Tensor> {
        match self.by_kernels(&x, true)? {
            Some(normed) => Ok(normed),
            None if self.is_split(&x) => self.by_columns(&x, &channels_innermost(&x)?, true),
            None => self.forward_silu(&x),
        }
    }

    fn by_libtorch(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.kind();
        let (weight, bias) = (self.weight.f_to_kind(kind)?, self.bias.f_to_kind(kind)?);
        Ok(x.f_group_norm(self.groups, Some(&weight), Some(&bias), self.eps, true)?)
    }

    /// Returns `true` where libtorch's kernel is inexact, unless it is wanted: channels-last tensors on a CPU, without
    /// gradients.
    fn is_split(&self, x: &Tensor) -> bool {
        x.device() == Device::Cpu
            && !Self::is_libtorchs()
            && x.dim() == 4
            && x.numel() > 0
            && matches!(x.kind(), Kind::Float | Kind::BFloat16 | Kind::Half)
            && !x.requires_grad()
            && !self.weight.requires_grad()
            && !self.bias.requires_grad()
            && channels_innermost(x).is_ok_and(|x| x.is_contiguous())
    }

    /// Normalises `x` [B, C, H, W] into `out` [B, H, W, C], which may be the same memory.
    fn by_columns(&self, x: &Tensor, out: &Tensor, silu: bool) -> Result<Tensor> {
        let x = channels_innermost(x)?;
        for sample in 0..x.size4()?.0 {
            let (x, out) = (x.f_select(0, sample)?, out.f_select(0, sample)?); // [H, W, C]
            let (scale, shift) = self.affine(&x)?;
            if x.kind() == Kind::Float {
                let mut out = shift.f_addcmul_out(&out, &x, &scale)?;
                if silu {
                    let _ = out.f_silu_()?;
                }
                continue;
            }
            let channels = x.size3()?.2;
            let pieces = |t: &Tensor| t.f_view([-1, channels])?.f_split((VALUES / channels).max(1), 0);
            for (x, mut out) in pieces(&x)?.into_iter().zip(pieces(&out)?) {
                let mut wide = shift.f_addcmul(&x, &scale)?; // in f32, the dtype of the factors
                if silu {
                    let _ = wide.f_silu_()?;
                }
                out.f_copy_(&wide)?;
            }
        }
        Ok(out.f_permute([0, 3, 1, 2])?)
    }

    /// Returns `scale` and `shift` `[C]`, in f32, with which `x * scale + shift` is the norm of `x` [H, W, C].
    fn affine(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (height, width, channels) = x.size3()?;
        let columns = columns(height, width);
        let sums = || Tensor::f_zeros([columns * channels], (Kind::Float, Device::Cpu));
        // The statistics of a batch norm with a channel for each column and channel; it computes the variance in
        // a second pass, around the mean. Running statistics in f32 ask for results in f32 for narrow dtypes, too.
        let (mean, variance) = x.f_reshape([-1, columns * channels, 1, 1])?.f_batch_norm_update_stats(
            Some(sums()?),
            Some(sums()?),
            0.0,
        )?;
        let grouped = |t: &Tensor| {
            t.f_to_kind(Kind::Double)?
                .f_view([-1, self.groups, channels / self.groups])
        };
        let joined = |t: &Tensor| t.f_mean_dim([0_i64, 2].as_slice(), true, Kind::Double); // [1, groups, 1]
        let (mean, variance) = (grouped(&mean)?, grouped(&variance)?);
        let middle = joined(&mean)?;
        let variance = joined(&variance.f_add(&mean.f_sub(&middle)?.f_square()?)?)?;
        let scale = grouped(&self.weight)?.f_mul(&variance.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        let shift = grouped(&self.bias)?.f_sub(&middle.f_mul(&scale)?)?;
        let narrow = |t: &Tensor| t.f_flatten(0, -1)?.f_to_kind(Kind::Float);
        Ok((narrow(&scale)?, narrow(&shift)?))
    }
}

/// Returns a view [B, H, W, C] of `x` [B, C, H, W].
fn channels_innermost(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_permute([0, 2, 3, 1])?)
}

/// Returns the number of columns into which the positions of an image are divided: the width, or a half, a
/// quarter, … of it while each column has at most [`POSITIONS`].
fn columns(height: i64, width: i64) -> i64 {
    let mut columns = width;
    while columns % 2 == 0 && height * width / (columns / 2) <= POSITIONS {
        columns /= 2;
    }
    columns
}

#[cfg(test)]
mod tests {
    use kontext_core::noise;

    use super::*;
    use crate::ops;

    const EPS: f64 = 1e-6;

    /// Returns a norm with weights around 1 and biases around 0, and channels-last values whose channels have
    /// means of up to three times their spread, as those of a trained autoencoder.
    fn case(shape: [i64; 4], groups: i64, kind: Kind) -> (GroupNorm, Tensor) {
        let draw = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
        let channels = shape[1];
        let norm = GroupNorm {
            weight: draw(&[channels], 1) * 0.3 + 1.0,
            bias: draw(&[channels], 2),
            groups,
            eps: EPS,
            kernels: None,
        };
        let x = draw(&shape, 3) * 2.0 + draw(&[1, channels, 1, 1], 4) * 3.0;
        (norm, ops::channels_last(&x.to_kind(kind)).unwrap())
    }

    /// Returns the norm with all arithmetic in f64.
    fn expected(norm: &GroupNorm, x: &Tensor, silu: bool) -> Tensor {
        let wide = |t: &Tensor| t.to_kind(Kind::Double);
        let normed = wide(x).contiguous().group_norm(
            norm.groups,
            Some(&wide(&norm.weight)),
            Some(&wide(&norm.bias)),
            EPS,
            true,
        );
        if silu { normed.silu() } else { normed }
    }

    fn relative(got: &Tensor, expected: &Tensor) -> f64 {
        let difference = got.to_kind(Kind::Double) - expected;
        difference.norm().double_value(&[]) / expected.norm().double_value(&[])
    }

    #[test]
    fn channels_last_norms_are_exact_at_all_sizes() {
        for (shape, groups) in [
            ([1, 128, 512, 512], 32),
            ([1, 512, 64, 48], 32),
            ([2, 32, 53, 75], 32),
            ([3, 8, 1, 1], 4),
            ([1, 64, 1021, 1], 16),
        ] {
            let (norm, x) = case(shape, groups, Kind::Float);
            let error = relative(&norm.forward(&x).unwrap(), &expected(&norm, &x, false));
            assert!(error < 3e-7, "{shape:?}: {error:e}");
            let wanted = expected(&norm, &x, true);
            let silu = norm.forward_silu(&x).unwrap();
            assert!(relative(&silu, &wanted) < 3e-7, "{shape:?} with SiLU");
            let strides = x.stride();
            let pointer = x.data_ptr();
            let in_place = norm.forward_silu_in_place(x).unwrap();
            assert!(in_place.equal(&silu), "{shape:?} in place");
            assert_eq!((in_place.stride(), in_place.data_ptr()), (strides, pointer));
        }
    }

    #[test]
    fn norms_are_libtorchs_bit_for_bit_in_its_scope() {
        let (norm, x) = case([1, 32, 96, 80], 8, Kind::Float);
        let theirs = x.group_norm(8, Some(&norm.weight), Some(&norm.bias), EPS, true);
        let both = || (norm.forward(&x).unwrap(), norm.forward_silu(&x).unwrap());
        let (plain, silu) = GroupNorm::by_libtorch_in(both);
        assert!(plain.equal(&theirs) && silu.equal(&theirs.silu()));
        let (plain, silu) = both();
        assert!(!plain.equal(&theirs) && !silu.equal(&theirs.silu()));
    }

    #[test]
    fn narrow_dtypes_are_rounded_once() {
        for (kind, half_step) in [(Kind::BFloat16, 2.0_f64.powi(-9)), (Kind::Half, 2.0_f64.powi(-12))] {
            let (norm, x) = case([2, 64, 96, 80], 32, kind);
            let wanted = expected(&norm, &x, true);
            let rounded = relative(&wanted.to_kind(kind), &wanted);
            assert!(rounded < half_step);
            let got = norm.forward_silu(&x).unwrap();
            assert_eq!(got.kind(), kind);
            let error = relative(&got, &wanted);
            // Values whose f32 result lies next to the middle of two steps may fall on either side.
            assert!(error < rounded * 1.001, "{kind:?}: {error:e}, by rounding {rounded:e}");
            assert!(norm.forward_silu_in_place(x).unwrap().equal(&got));
        }
    }

    #[test]
    fn contiguous_tensors_and_gradients_take_libtorchs_kernel() {
        let (norm, x) = case([1, 32, 24, 40], 32, Kind::Float);
        let contiguous = norm.forward_silu(&x.contiguous()).unwrap();
        assert!(contiguous.is_contiguous());
        assert!(relative(&contiguous, &expected(&norm, &x, true)) < 3e-7);
        let leaf = x.set_requires_grad(true);
        let y = norm.forward_silu(&leaf).unwrap();
        y.sum(Kind::Float).backward();
        assert!(leaf.grad().abs().max().double_value(&[]) > 0.0);
    }

    #[test]
    fn columns_divide_the_positions_and_are_short() {
        for (height, width, expected) in [
            (512, 512, 32),
            (64, 64, 1),
            (1024, 1024, 128),
            (53, 75, 75),
            (9000, 1, 1),
        ] {
            assert_eq!(columns(height, width), expected, "{height}x{width}");
            assert_eq!(height * width % expected, 0);
        }
    }
}
