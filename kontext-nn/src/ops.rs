//! Tensor operations shared by the models.

use tch::{Kind, Tensor};

use kontext_core::Result;

use crate::bf16_rows;

pub use crate::attention::{attend, attend_tokens, merge_heads, split_heads};

/// Swaps the two halves of a tensor's rows: [N, ..] to [N, ..].
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn swap_halves(x: &Tensor) -> Result<Tensor> {
    let halves = x.f_chunk(2, 0)?;
    Ok(Tensor::f_cat(&halves.iter().rev().collect::<Vec<_>>(), 0)?)
}

/// Computes `x * sigmoid(1.702 x)`, CLIP's approximation of GELU.
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_mul_scalar(1.702)?.f_sigmoid()?.f_mul(x)?)
}

/// Computes GELU in its tanh approximation, in the memory of `x` if no gradient is required; nothing else may
/// use that memory.
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn gelu_tanh(mut x: Tensor) -> Result<Tensor> {
    Ok(if x.requires_grad() {
        x.f_gelu("tanh")?
    } else {
        x.f_gelu_("tanh")?
    })
}

/// Norms heads by their root mean square, times weights, and rotates their adjacent pairs of features, all in f32 with
/// one rounding, in one pass over memory; returns `None` unless `x` is in bf16 on a CPU, its last dimension is dense
/// and a multiple of 16, and no gradient is wanted.
///
/// # Shapes
/// `x` [B, L, N, H, D], `weight` [L, N, 1, D] or [N, 1, D] in f32, `pairs` [L, D] in f32, the cosine and the sine of each pair
/// of features in turns; returns [B, L, N, H, D].
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn norm_and_rotate(x: &Tensor, weight: &Tensor, pairs: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    let &[_, length, kinds, heads, width] = x.size().as_slice() else {
        return Ok(None);
    };
    let rows = x.f_flatten(2, 3)?;
    if !bf16_rows::suits(&rows) || weight.requires_grad() || pairs.size() != [length, width] {
        return Ok(None);
    }
    let by_token = weight.size() == [length, kinds, 1, width];
    if !by_token && weight.size() != [kinds, 1, width] {
        return Ok(None);
    }
    let turn = bf16_rows::Turn {
        weight: Vec::try_from(&weight.f_flatten(0, -1)?)?,
        by_token,
        kinds: kinds as usize,
        heads: heads as usize,
        pairs: Vec::try_from(&pairs.f_flatten(0, -1)?)?,
        eps: eps as f32,
    };
    let out = bf16_rows::norm_and_rotate(&rows, &turn)?;
    Ok(Some(out.f_unflatten(2, [kinds, heads])?))
}

/// Normalises over the last dimension without weights: `(x - mean) / sqrt(variance + eps)`.
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn plain_layer_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.size().last().copied().unwrap_or_default();
    Ok(x.f_layer_norm([width], None::<&Tensor>, None::<&Tensor>, eps, true)?)
}

/// Returns the same values [B, C, H, W] in channels-last memory.
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}

/// Computes the sinusoidal embedding of scalars: cosines first, then sines, of `t * 10000^(-i / half)`.
///
/// The frequencies are computed in f32 in the order of the references: at t = 1000, one unit in the last
/// place of a frequency already turns its angle by 6e-5.
///
/// # Shapes
/// `t` `[B]` (any dtype, read as f32), returns `[B, width]` in f32.
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
///
/// Source: black-forest-labs/flux `src/flux/modules/layers.py` `timestep_embedding`.
pub fn timestep_embedding(t: &Tensor, width: i64) -> Result<Tensor> {
    /// The longest period, unchanged since the original transformer.
    const PERIOD: f64 = 10_000.0;
    let half = width / 2;
    let steps = Tensor::f_arange(half, (Kind::Float, t.device()))?;
    let frequencies = steps.f_mul_scalar(-PERIOD.ln())?.f_div_scalar(half)?.f_exp()?;
    let angles = t
        .f_to_kind(Kind::Float)?
        .f_unsqueeze(-1)?
        .f_mul(&frequencies.f_unsqueeze(0)?)?;
    Ok(Tensor::f_cat(&[angles.f_cos()?, angles.f_sin()?], -1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestep_zero_embeds_as_ones_then_zeros() {
        let e = timestep_embedding(&Tensor::from_slice(&[0.0_f32]), 8).unwrap();
        assert_eq!(
            Vec::<f32>::try_from(e.view([-1])).unwrap(),
            [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
        );
    }
}
