//! One layer: causal attention, then the feed-forward layer, each pre-normed and residual.
//!
//! Source: huggingface/transformers v4.57.6 `models/clip/modeling_clip.py` `CLIPEncoderLayer`,
//! `CLIPAttention`, `CLIPMLP`.

use kontext_core::{Result, Tensor};
use kontext_nn::ops::{attend, split_heads};
use kontext_nn::{LayerNorm, Linear, Weights};

use super::ClipConfig;
use crate::Activation;

/// A pre-norm layer: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
#[derive(Debug)]
pub(super) struct Layer {
    layer_norm1: LayerNorm,
    attention: Attention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Layer {
    pub(super) fn new(w: &Weights, config: &ClipConfig) -> Result<Self> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        Ok(Self {
            layer_norm1: LayerNorm::new(&w.at("layer_norm1"), width, eps)?,
            attention: Attention::new(&w.at("self_attn"), config)?,
            layer_norm2: LayerNorm::new(&w.at("layer_norm2"), width, eps)?,
            fc1: Linear::new(&w.at("mlp.fc1"), width, inner)?,
            fc2: Linear::new(&w.at("mlp.fc2"), inner, width)?,
            activation: config.hidden_act,
        })
    }

    /// Maps `x` [B, T, D] and the mask [T, T] to [B, T, D].
    pub(super) fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let x = x.f_add(&self.attention.forward(&self.layer_norm1.forward(x)?, mask)?)?;
        let hidden = self
            .activation
            .apply(&self.fc1.forward(&self.layer_norm2.forward(&x)?)?)?;
        Ok(x.f_add(&self.fc2.forward(&hidden)?)?)
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
}

impl Attention {
    fn new(w: &Weights, config: &ClipConfig) -> Result<Self> {
        let linear = |name: &str| Linear::new(&w.at(name), config.hidden_size, config.hidden_size);
        Ok(Self {
            q_proj: linear("q_proj")?,
            k_proj: linear("k_proj")?,
            v_proj: linear("v_proj")?,
            out_proj: linear("out_proj")?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let heads = |p: &Linear| split_heads(&p.forward(x)?, self.heads); // [B, H, T, D/H]
        let attended = attend(
            &heads(&self.q_proj)?,
            &heads(&self.k_proj)?,
            &heads(&self.v_proj)?,
            Some(mask),
            None,
        )?;
        self.out_proj.forward(&attended)
    }
}
