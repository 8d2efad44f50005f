//! Activation functions, by their names in transformers' configurations.

use kontext_core::{Result, Tensor};
use kontext_nn::ops;
use serde::{Deserialize, Serialize};

/// Activation function of a feed-forward layer.
///
/// Source: huggingface/transformers v4.57.6 `activations.py` `ACT2FN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Activation {
    /// ReLU: `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
    /// Exact GELU: `x * Phi(x)`, with the normal distribution's CDF.
    #[serde(rename = "gelu")]
    Gelu,
    /// GELU in its tanh approximation.
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    /// Quick GELU: `x * sigmoid(1.702 x)`.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// SiLU: `x * sigmoid(x)`.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

impl Activation {
    /// Applies the function to each element.
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::Relu => x.f_relu()?,
            Activation::Gelu => x.f_gelu("none")?,
            Activation::GeluTanh => x.f_gelu("tanh")?,
            Activation::QuickGelu => ops::quick_gelu(x)?,
            Activation::Silu => x.f_silu()?,
        })
    }
}
