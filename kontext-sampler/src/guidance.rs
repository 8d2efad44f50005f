//! True classifier-free guidance, away from a negative prompt.

use kontext_core::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Batching of the two velocities of true classifier-free guidance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CfgMode {
    /// One after the other: no more memory than without guidance.
    #[default]
    Sequential,
    /// In one batch: faster if a single image leaves the device idle.
    Batched,
}

/// Computes `negative + scale * (positive - negative)`.
///
/// # Errors
/// [`Error::Torch`] if their shapes differ.
///
/// Source: huggingface/diffusers 0.38 `pipeline_flux_kontext.py`, `true_cfg_scale`.
pub fn combine(positive: &Tensor, negative: &Tensor, scale: f64) -> Result<Tensor> {
    Ok(negative.f_add(&positive.f_sub(negative)?.f_mul_scalar(scale)?)?)
}

/// Splits a batched result (positive items first) and combines its halves.
///
/// # Errors
/// [`Error::Shape`] if the batch size is odd.
pub fn combine_batched(both: &Tensor, scale: f64) -> Result<Tensor> {
    let batch = both.size().first().copied().unwrap_or_default();
    if batch % 2 != 0 {
        return Err(Error::Shape {
            tensor: "velocity",
            expected: "[2 B, L, C]",
            got: both.size(),
        });
    }
    combine(
        &both.f_narrow(0, 0, batch / 2)?,
        &both.f_narrow(0, batch / 2, batch / 2)?,
        scale,
    )
}
