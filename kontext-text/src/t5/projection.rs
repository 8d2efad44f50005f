//! Linear maps without bias, whose weight may be stored scaled.

use kontext_core::nn::Linear;
use kontext_core::{Kind, Result, Tensor, Weights};

/// Names under which files in 8-bit floats keep the factor that their weight was divided by.
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];

/// `x @ (scale * weight)^T`.
///
/// Files in "scaled fp8" hold weights that were stretched to the range of 8-bit floats, with one
/// f32 factor for each that undoes it; leaving it out gives noise.
#[derive(Debug)]
pub(super) struct Projection {
    linear: Linear,
    scale: Option<Tensor>,
}

impl Projection {
    /// Reads `weight` [out, in], and its factor (one number) where there is one.
    pub(super) fn new(w: &Weights, input: i64, output: i64) -> Result<Self> {
        let stored = |name: &&str| !w.is_synthetic() && w.contains(name);
        let scale = SCALES.into_iter().find(stored);
        let scale = scale.map(|name| w.clone().kind(Kind::Float).tensor(name, &[])).transpose()?;
        let linear = Linear::without_bias(w, input, output)?;
        let linear = match &scale {
            Some(scale) => linear.of_input_times(scale.f_double_value(&[])?),
            None => linear,
        };
        Ok(Self { linear, scale })
    }

    /// [.., in] to [.., out], in the input's kind.
    ///
    /// The factor goes to the input: the product with the stretched weight could leave f16's range.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.scale {
            Some(scale) => self.linear.forward(&x.f_mul(scale)?),
            None => self.linear.forward(x),
        }
    }
}
