//! Tensor operations shared by the models.

use tch::{Kind, Tensor};

use kontext_core::Result;

/// Computes scaled dot-product attention on heads, `softmax(q k^T * scale + bias) v`.
///
/// # Shapes
/// `q` [B, H, L, D], `k` and `v` [B, H, S, D], `bias` broadcastable to [B, H, L, S]; returns
/// [B, L, H * D]. `scale` defaults to 1 / sqrt(D).
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, scale: Option<f64>) -> Result<Tensor> {
    let heads = Tensor::f_scaled_dot_product_attention(q, k, v, bias, 0.0, false, scale, false)?;
    merge_heads(&heads)
}

/// Splits the heads: [B, L, H * D] to [B, H, L, D].
///
/// # Errors
/// [`kontext_core::Error::Torch`] if the last size is not a multiple of `heads`.
pub fn split_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    Ok(x.f_unflatten(-1, [heads, -1])?.f_transpose(-3, -2)?)
}

/// Merges the heads: [B, H, L, D] to [B, L, H * D].
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_transpose(-3, -2)?.f_flatten(-2, -1)?)
}

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
    use kontext_core::{Device, noise};

    #[test]
    fn heads_split_and_merge_back() {
        let x = noise::randn(&[2, 5, 12], 0, Kind::Float, Device::Cpu).unwrap();
        let heads = split_heads(&x, 3).unwrap();
        assert_eq!(heads.size(), [2, 3, 5, 4]);
        assert!(merge_heads(&heads).unwrap().equal(&x));
    }

    #[test]
    fn attention_over_one_key_returns_its_value() {
        let q = noise::randn(&[1, 2, 3, 4], 0, Kind::Float, Device::Cpu).unwrap();
        let kv = noise::randn(&[1, 2, 1, 4], 1, Kind::Float, Device::Cpu).unwrap();
        let out = attend(&q, &kv, &kv, None, None).unwrap();
        assert!(out.allclose(&merge_heads(&kv).unwrap().expand([1, 3, 8], false), 1e-6, 1e-6, false));
    }

    #[test]
    fn timestep_zero_embeds_as_ones_then_zeros() {
        let e = timestep_embedding(&Tensor::from_slice(&[0.0_f32]), 8).unwrap();
        assert_eq!(
            Vec::<f32>::try_from(e.view([-1])).unwrap(),
            [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
        );
    }
}
