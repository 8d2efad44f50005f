//! Rows of activations in the form in which the layers that read them multiply.

use std::ops::Range;

use kontext_core::{Kind, Result, Tensor};
use kontext_kernels::Kernels;
use kontext_nn::{Fp8Rows, Linear, ops};

/// Dtype of a step by kernels.
const KIND: Kind = Kind::BFloat16;

/// Rows [B, T, D] of a step by kernels.
#[derive(Debug)]
pub(crate) enum Rows {
    /// In bf16.
    Wide(Tensor),
    /// Rounded to fp8 by a kernel, once for all layers.
    Fp8(Fp8Rows),
}

impl Rows {
    /// Takes codes and factors as a kernel returns them.
    pub(crate) fn fp8((codes, factors): (Tensor, Tensor)) -> Result<Self> {
        Ok(Self::Fp8(Fp8Rows::new(codes, factors)?))
    }

    /// Returns the rows `start..start + count` of each item.
    pub(crate) fn range(&self, start: i64, count: i64) -> Result<Self> {
        Ok(match self {
            Self::Wide(x) => Self::Wide(x.f_narrow(1, start, count)?),
            Self::Fp8(rows) => Self::Fp8(rows.rows(start, count)?),
        })
    }

    /// Computes some output features of a layer.
    pub(crate) fn project(&self, layer: &Linear, features: Range<i64>) -> Result<Tensor> {
        match self {
            Self::Wide(x) => layer.forward_rows(x, features.start, features.end - features.start),
            Self::Fp8(rows) => layer.forward_fp8(rows, features, KIND),
        }
    }

    /// Writes some output features of a layer to `out`, which may be a part of a larger tensor.
    pub(crate) fn project_to(&self, layer: &Linear, features: Range<i64>, out: &Tensor) -> Result<()> {
        match self {
            Self::Wide(x) => layer.forward_to(x, features, out),
            Self::Fp8(rows) => layer.forward_fp8_to(rows, features, out),
        }
    }

    /// Computes GELU of some output features of a layer.
    pub(crate) fn gelu(&self, layer: &Linear, features: Range<i64>) -> Result<Tensor> {
        match self {
            Self::Wide(x) => layer.forward_gelu(x, features),
            Self::Fp8(_) => ops::gelu_tanh(self.project(layer, features)?),
        }
    }
}

/// Returns `true` if kernels can write the input of a layer in fp8 without a loss for it; `features` are all that
/// are computed.
pub(crate) fn takes_fp8(kernels: &Kernels, layer: &Linear, features: i64) -> bool {
    kernels.has_fp8() && layer.takes_fp8(0..features, KIND)
}
