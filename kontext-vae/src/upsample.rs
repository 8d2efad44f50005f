//! Nearest-neighbour upsampling by two and the following 3x3 convolution, fused into one convolution of the
//! small image.
//!
//! Each pixel is upsampled to a 2x2 square of equal ones, so a 3x3 window over the upsampled image covers
//! only 2x2 different pixels of the small one. Summing the weights of equal pixels leaves a 2x2 kernel for
//! each of the four positions in the square: 16 products per pixel instead of 36, and the upsampled input is
//! never built. The result differs from upsampling first only by rounding (relative 1e-6 in f32).
//!
//! Source of the unfused operation: huggingface/diffusers v0.38 models/upsampling.py, Upsample2D.

use kontext_core::{Result, Tensor};
use kontext_nn::{InKinds, Weights, ops};

/// Fused upsampling and convolution: `conv3x3(upsample_nearest(x, 2))`.
#[derive(Debug)]
pub(crate) struct Upsample {
    /// Kernels [4 * C, C, 2, 2] for upper left, upper right, lower left and lower right, channels-last.
    weight: InKinds,
    /// Bias [4 * C].
    bias: Option<InKinds>,
}

impl Upsample {
    /// Reads `weight` [C, C, 3, 3] and `bias` [C].
    pub(crate) fn new(w: &Weights, channels: i64) -> Result<Self> {
        let bias = w.tensor("bias", &[channels])?.f_repeat([4])?;
        Ok(Self {
            bias: Some(InKinds::new(bias)),
            ..Self::without_bias(w, channels)?
        })
    }

    /// Reads `weight` [C, C, 3, 3], without bias.
    pub(crate) fn without_bias(w: &Weights, channels: i64) -> Result<Self> {
        let weight = w.tensor("weight", &[channels, channels, 3, 3])?;
        let kind = weight.kind();
        // In f32: sums of bf16 sums would be rounded twice.
        let [upper, lower] = pairs(&weight.f_to_kind(kontext_core::Kind::Float)?, 2)?;
        let [upper_left, upper_right] = pairs(&upper, 3)?;
        let [lower_left, lower_right] = pairs(&lower, 3)?;
        let weight = Tensor::f_cat(&[upper_left, upper_right, lower_left, lower_right], 0)?.f_to_kind(kind)?;
        let weight = if weight.requires_grad() {
            weight
        } else {
            ops::channels_last(&weight)?
        };
        Ok(Self {
            weight: InKinds::new(weight),
            bias: None,
        })
    }

    /// Maps [B, C, H, W] to [B, C, 2H, 2W], channels-last except in training.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.kind();
        let bias = self.bias.as_ref().map(|bias| bias.get(kind)).transpose()?;
        // Padded with a row or column of zeros on each side: windows start one before the first pixel.
        let corners = x.f_conv2d(&self.weight.get(kind)?, bias, [1, 1], [1, 1], [1, 1], 1)?; // [B, 4C, H+1, W+1]
        let corners = corners.f_permute([0, 2, 3, 1])?.f_unflatten(3, [2, 2, -1])?; // [B, H+1, W+1, 2, 2, C]
        let (batch, channels, height, width) = x.size4()?;
        let out = Tensor::f_empty([batch, height, 2, width, 2, channels], (kind, x.device()))?;
        for row in 0..2 {
            for column in 0..2 {
                let corner = corners.f_select(4, column)?.f_select(3, row)?;
                let corner = corner.f_narrow(1, row, height)?.f_narrow(2, column, width)?; // [B, H, W, C]
                out.f_select(4, column)?.f_select(2, row)?.f_copy_(&corner)?;
            }
        }
        let out = out
            .f_reshape([batch, 2 * height, 2 * width, channels])?
            .f_permute([0, 3, 1, 2])?;
        Ok(if self.weight.held().requires_grad() {
            out.f_contiguous()?
        } else {
            out
        })
    }
}

/// Splits kernels of width 3 along `dim` into the two equivalent kernels of width 2 on duplicated pixels: the
/// first pixel of a pair sees (previous, own, own), the second (own, own, next).
fn pairs(weight: &Tensor, dim: i64) -> Result<[Tensor; 2]> {
    let tap = |index| weight.f_narrow(dim, index, 1);
    let (a, b, c) = (tap(0)?, tap(1)?, tap(2)?);
    Ok([
        Tensor::f_cat(&[&a, &b.f_add(&c)?], dim)?,
        Tensor::f_cat(&[&a.f_add(&b)?, &c], dim)?,
    ])
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, Kind, noise};
    use kontext_nn::Conv2d;

    use super::*;

    #[test]
    fn equals_upsampling_and_then_convolving() {
        let (weights, channels) = (Weights::synthetic(3), 6);
        let x = noise::randn(&[2, channels, 5, 7], 0, Kind::Float, Device::Cpu).unwrap();
        let conv = Conv2d::new(&weights, channels, channels, 3).unwrap();
        let expected = conv.forward(&x.upsample_nearest2d([10, 14], None, None)).unwrap();
        let got = Upsample::new(&weights, channels).unwrap().forward(&x).unwrap();
        // Sums of 54 products near 1 in f32, in another order.
        assert!(got.allclose(&expected, 1e-5, 1e-5, false));
    }

    #[test]
    fn keeps_channels_innermost_and_the_kind() {
        let x = noise::randn(&[1, 4, 3, 3], 0, Kind::BFloat16, Device::Cpu).unwrap();
        let y = Upsample::new(&Weights::synthetic(3), 4).unwrap().forward(&x).unwrap();
        assert_eq!((y.size(), y.kind()), (vec![1, 4, 6, 6], Kind::BFloat16));
        assert_eq!(y.stride(), [144, 1, 24, 4]);
    }
}
