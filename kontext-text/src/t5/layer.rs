//! One encoder block: attention, then the feed-forward layer, each pre-normed and residual.
//!
//! Source: huggingface/transformers v4.57.6 `models/t5/modeling_t5.py` `T5Block`, `T5Attention`,
//! `T5DenseGatedActDense`, `T5DenseActDense`.

use kontext_core::{Device, Kind, Result, Tensor};
use kontext_nn::ops::{merge_heads, split_heads};
use kontext_nn::{Linear, RmsNorm, Weights};

use super::T5Config;
use crate::Activation;

/// A pre-norm block: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
#[derive(Debug)]
pub(super) struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

impl Block {
    pub(super) fn new(w: &Weights, config: &T5Config, compute: Kind) -> Result<Self> {
        let (attention, feed_forward) = (w.at("layer.0"), w.at("layer.1"));
        let norm = |w: &Weights| RmsNorm::new(&w.at("layer_norm"), "weight", config.d_model, config.layer_norm_epsilon);
        Ok(Self {
            attention_norm: norm(&attention)?,
            attention: Attention::new(&attention.at("SelfAttention"), config)?,
            feed_forward_norm: norm(&feed_forward)?,
            feed_forward: FeedForward::new(&feed_forward.at("DenseReluDense"), config, compute)?,
        })
    }

    /// Maps `x` [B, T, D] and the bias [1, H, T, T], in the kind of [`scores_in`], to [B, T, D], computing in `compute`.
    ///
    /// The result may be wider than `compute`: in f16 the feed-forward layer returns f32.
    pub(super) fn forward(&self, x: &Tensor, bias: &Tensor, compute: Kind) -> Result<Tensor> {
        let normed = self.attention_norm.forward(x)?.f_to_kind(compute)?;
        let x = clamp_half(x.f_add(&self.attention.forward(&normed, bias)?)?)?;
        let normed = self.feed_forward_norm.forward(&x)?.f_to_kind(compute)?;
        clamp_half(x.f_add(&self.feed_forward.forward(&normed)?)?)
    }
}

/// Returns the kind of the attention's scores. Unscaled ones reach the hundreds, of which bf16 keeps steps of one. A GPU
/// follows the reference.
pub(super) fn scores_in(compute: Kind, device: Device) -> Kind {
    match (compute, device) {
        (Kind::BFloat16, Device::Cpu) => Kind::Float,
        _ => compute,
    }
}

/// Clamps f16 sums to the largest finite value, or to 1000 less if any has already overflowed.
fn clamp_half(x: Tensor) -> Result<Tensor> {
    /// The largest finite f16.
    const MAX: f64 = 65_504.0;
    if x.kind() != Kind::Half {
        return Ok(x);
    }
    let overflown = x.f_isinf()?.f_any()?;
    let limit = Tensor::f_full([0_i64; 0], MAX, (Kind::Half, x.device()))?;
    let limit = limit.f_sub_scalar(1000.0)?.f_where_self(&overflown, &limit)?;
    Ok(x.f_clamp_tensor(Some(&limit.f_neg()?), Some(&limit))?)
}

/// Full self-attention, padding included, without the usual 1 / sqrt(d) scale.
#[derive(Debug)]
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: i64,
}

impl Attention {
    fn new(w: &Weights, config: &T5Config) -> Result<Self> {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        Ok(Self {
            q: Linear::without_bias(&w.at("q"), width, inner)?,
            k: Linear::without_bias(&w.at("k"), width, inner)?,
            v: Linear::without_bias(&w.at("v"), width, inner)?,
            o: Linear::without_bias(&w.at("o"), inner, width)?,
            heads: config.num_heads,
        })
    }

    /// Computes attention with the softmax in f32 for every dtype.
    ///
    /// Written out in the reference's order instead of with fused attention: unscaled scores reach the
    /// hundreds, at which the softmax turns the last bit of a score into the fifth digit of the result. The
    /// score matrix of 512 tokens is small. In bf16 on a CPU that digit is below the rounding, and attention is fused and in
    /// f32 as a whole.
    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let kind = bias.kind();
        // [B, H, T, D/H]
        let heads = |p: &Linear| -> Result<Tensor> { Ok(split_heads(&p.forward(x)?, self.heads)?.f_to_kind(kind)?) };
        let (q, k, v) = (heads(&self.q)?, heads(&self.k)?, heads(&self.v)?);
        let out = if kind == x.kind() {
            let scores = q.f_matmul(&k.f_transpose(-2, -1)?)?.f_add(bias)?;
            scores.f_softmax(-1, Kind::Float)?.f_to_kind(kind)?.f_matmul(&v)?
        } else {
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, Some(bias), 0.0, false, 1.0, false)?
                .f_to_kind(x.kind())?
        };
        self.o.forward(&merge_heads(&out)?)
    }
}

/// The feed-forward layer: `wo (activation(wi_0 x) * wi_1 x)`, or `wo activation(wi x)` if ungated.
#[derive(Debug)]
struct FeedForward {
    wi: Linear,
    gated: Option<Linear>,
    wo: Linear,
    activation: Activation,
}

impl FeedForward {
    fn new(w: &Weights, config: &T5Config, compute: Kind) -> Result<Self> {
        let (width, hidden) = (config.d_model, config.d_ff);
        // Weights are prefetched in the order in which layers are built: that of `forward`.
        let wi = Linear::without_bias(&w.at(if config.gated { "wi_0" } else { "wi" }), width, hidden)?;
        let gated = config
            .gated
            .then(|| Linear::without_bias(&w.at("wi_1"), width, hidden))
            .transpose()?;
        let wo = w.at("wo");
        let wo = if compute == Kind::Half {
            wo.kind(Kind::Float)
        } else {
            wo
        };
        Ok(Self {
            wi,
            gated,
            wo: Linear::without_bias(&wo, hidden, width)?,
            activation: config.activation,
        })
    }

    /// Maps [B, T, D] to [B, T, D] in `inner`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // In f16 the inner activations overflow.
        let inner = if x.kind() == Kind::Half { Kind::Float } else { x.kind() };
        let mut hidden = self.activation.apply(&self.wi.forward(x)?)?.f_to_kind(inner)?; // [B, T, F]
        if let Some(gated) = &self.gated {
            hidden = hidden.f_mul(&gated.forward(x)?)?;
        }
        self.wo.forward(&hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_sum_is_clamped_to_its_largest_value_or_below_when_it_overflowed() {
        let half = |values: &[f32]| Tensor::from_slice(values).to_kind(Kind::Half);
        let finite = clamp_half(half(&[65504.0, -3.0])).unwrap();
        assert_eq!(
            Vec::<f32>::try_from(finite.to_kind(Kind::Float)).unwrap(),
            [65504.0, -3.0]
        );
        let overflown = clamp_half(half(&[f32::INFINITY, f32::NEG_INFINITY, 65504.0, 1.0])).unwrap();
        assert_eq!(
            Vec::<f32>::try_from(overflown.to_kind(Kind::Float)).unwrap(),
            [64512.0, -64512.0, 64512.0, 1.0]
        );
    }
}
