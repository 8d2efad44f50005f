//! The middle block: self-attention between two residual blocks.
//!
//! Source: huggingface/diffusers v0.38 models/unets/unet_2d_blocks.py, UNetMidBlock2D;
//! models/attention_processor.py, Attention, AttnProcessor2_0.

use kontext_core::{Device, Result, Tensor};
use kontext_nn::{GroupNorm, Linear, Weights, ops};

use crate::resnet::{NORM_EPS, ResnetBlock};

/// Single-head self-attention over all positions of an image; the head is as wide as the channels.
#[derive(Debug)]
pub(crate) struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    pub(crate) fn new(w: &Weights, channels: i64, groups: i64) -> Result<Self> {
        let linear = |name: &str| Linear::new(&w.at(name), channels, channels);
        Ok(Self {
            group_norm: GroupNorm::new(&w.at("group_norm"), channels, groups, NORM_EPS)?,
            to_q: linear("to_q")?,
            to_k: linear("to_k")?,
            to_v: linear("to_v")?,
            to_out: linear("to_out.0")?,
        })
    }

    /// Computes `x + attention(norm(x))`, [B, C, H, W] to the same shape; channels-last in and out.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = |t: &Tensor| -> Result<Tensor> { Ok(t.f_permute([0, 2, 3, 1])?.f_flatten(1, 2)?) };
        let normed = tokens(&self.group_norm.forward(x)?)?; // [B, H * W, C]
        let head = |linear: &Linear| ops::split_heads(&linear.forward(&normed)?, 1); // [B, 1, H * W, C]
        let (q, k, v) = (head(&self.to_q)?, head(&self.to_k)?, head(&self.to_v)?);
        let attended = attend_in_chunks(&q, &k, &v, rows_at_once(&q))?; // [B, H * W, C]
        let sum = self.to_out.forward_add(&attended, &tokens(x)?)?;
        let (_, _, height, width) = x.size4()?;
        Ok(sum.f_unflatten(1, [height, width])?.f_permute([0, 3, 1, 2])?) // [B, C, H, W]
    }
}

/// Computes attention, [B, 1, L, C] to [B, L, C], for `rows` queries at a time. Each query has a separate
/// softmax, so the result is the same as for all at once.
fn attend_in_chunks(q: &Tensor, k: &Tensor, v: &Tensor, rows: i64) -> Result<Tensor> {
    let chunks = q.f_split(rows, 2)?;
    let parts = chunks
        .iter()
        .map(|q| ops::attend(q, k, v, None, None))
        .collect::<Result<Vec<_>>>()?;
    match parts.as_slice() {
        [whole] => Ok(whole.shallow_clone()),
        parts => Ok(Tensor::f_cat(parts, 1)?),
    }
}

/// Returns the number of queries per chunk, chosen so that a score matrix has at most 2^26 values: 256 MiB in
/// f32, compared with 16 GiB for all queries of a 2048x2048 image.
///
/// libtorch's CPU kernel never materialises the matrix, whatever the head width. On CUDA, flash attention
/// supports heads up to 256 wide and these have 512, so the matrix may be built.
fn rows_at_once(q: &Tensor) -> i64 {
    const SCORES: i64 = 1 << 26;
    match (q.device(), q.size().as_slice()) {
        (Device::Cpu, &[_, _, tokens, _]) => tokens.max(1),
        (_, &[batch, _, tokens, _]) => (SCORES / (batch * tokens).max(1)).max(1),
        _ => 1,
    }
}

/// The middle block of encoder and decoder: residual block, attention, residual block.
#[derive(Debug)]
pub(crate) struct MidBlock {
    before: ResnetBlock,
    attention: Attention,
    after: ResnetBlock,
}

impl MidBlock {
    pub(crate) fn new(w: &Weights, channels: i64, groups: i64) -> Result<Self> {
        let resnet = |name: &str| ResnetBlock::new(&w.at(name), channels, channels, groups);
        Ok(Self {
            before: resnet("resnets.0")?,
            attention: Attention::new(&w.at("attentions.0"), channels, groups)?,
            after: resnet("resnets.1")?,
        })
    }

    pub(crate) fn norms(&mut self) -> impl Iterator<Item = &mut GroupNorm> {
        let around = self.before.norms().into_iter().chain(self.after.norms());
        around.chain([&mut self.attention.group_norm])
    }

    /// Maps [B, C, H, W] to the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.after.forward(&self.attention.forward(&self.before.forward(x)?)?)
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::{Kind, noise};

    use super::*;

    #[test]
    fn attention_in_chunks_equals_attention_at_once() {
        let normal = |seed| noise::randn(&[2, 1, 37, 16], seed, Kind::Float, Device::Cpu).unwrap();
        let (q, k, v) = (normal(0), normal(1), normal(2));
        let whole = attend_in_chunks(&q, &k, &v, 37).unwrap();
        for rows in [1, 5, 36, 100] {
            let chunked = attend_in_chunks(&q, &k, &v, rows).unwrap();
            // The same sums in another order.
            assert!(chunked.allclose(&whole, 1e-5, 1e-6, false), "{rows} rows");
        }
    }

    #[test]
    fn attention_keeps_channels_innermost() {
        let attention = Attention::new(&Weights::synthetic(0), 8, 4).unwrap();
        let x = noise::randn(&[1, 8, 3, 5], 0, Kind::Float, Device::Cpu).unwrap();
        let y = attention.forward(&ops::channels_last(&x).unwrap()).unwrap();
        assert_eq!(y.size(), [1, 8, 3, 5]);
        assert_eq!(y.stride(), [120, 1, 40, 8]);
    }
}
