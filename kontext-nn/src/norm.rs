//! Normalisations over the last dimension: layer and RMS.

use kontext_core::Result;
use tch::{Kind, Tensor};

use crate::{Weights, bf16_rows};

/// Layer normalisation over the last dimension, with weight and bias.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias` `[width]`.
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn new(w: &Weights, width: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: w.tensor("weight", &[width])?,
            bias: w.tensor("bias", &[width])?,
            eps,
        })
    }

    /// Normalises [.., width], keeping shape and dtype; libtorch computes the moments in f32.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.kind();
        let (weight, bias) = (self.weight.f_to_kind(kind)?, self.bias.f_to_kind(kind)?);
        Ok(x.f_layer_norm(self.weight.size(), Some(&weight), Some(&bias), self.eps, true)?)
    }
}

/// Root-mean-square normalisation over the last dimension: `x / sqrt(mean(x²) + eps) * weight`.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Reads the tensor `name` `[width]` ("weight" or "scale").
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn new(w: &Weights, name: &str, width: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: w.tensor(name, &[width])?,
            eps,
        })
    }

    /// Normalises [.., width], keeping shape and dtype. The mean of squares is computed in f32: in bf16 a sum
    /// of 128 squares keeps 8 bits, in f16 it overflows at activations above 256.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if bf16_rows::suits(x) && !self.weight.requires_grad() && x.size().last() == self.weight.size().last() {
            return bf16_rows::rms_norm(x, &self.weight, self.eps);
        }
        let kind = x.kind();
        let wide = x.f_to_kind(Kind::Float)?;
        let scale = wide
            .f_square()?
            .f_mean_dim(-1_i64, true, Kind::Float)?
            .f_add_scalar(self.eps)?
            .f_rsqrt()?;
        Ok(wide
            .f_mul(&scale)?
            .f_to_kind(kind)?
            .f_mul(&self.weight.f_to_kind(kind)?)?)
    }
}
