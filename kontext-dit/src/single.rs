//! Single-stream block: one set of weights for text and image, attention and MLP in parallel.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/modules/layers.py`, `SingleStreamBlock`.

use kontext_core::{Result, Tensor};
use kontext_nn::ops::attend_tokens;
use kontext_nn::{Linear, Weights};

use crate::DitConfig;
use crate::modulation::{Modulation, ModulationLayer, Table};
use crate::rope::Rope;
use crate::stream::{QkNorm, clamp_half, gelu};

/// Number of modulation vectors: (shift, scale, gate).
pub(crate) const PARTS: i64 = 3;

/// A single-stream block.
///
/// `linear2` projects the concatenation of attention and MLP; it is stored as two layers whose products are
/// added, so the concatenation is never materialised.
#[derive(Debug)]
pub(crate) struct SingleBlock {
    linear1: Linear,
    attn_out: Linear,
    mlp_out: Linear,
    norm: QkNorm,
    modulation: ModulationLayer,
    width: i64,
    mlp_width: i64,
    heads: i64,
}

impl SingleBlock {
    pub(crate) fn new(w: &Weights, config: &DitConfig) -> Result<Self> {
        let (width, mlp_width) = (config.width(), config.mlp_width);
        let linear2 = Linear::new(&w.at("linear2"), width + mlp_width, width)?;
        let (attn_out, mlp_out) = linear2.split_input(width)?;
        Ok(Self {
            linear1: Linear::new(&w.at("linear1"), width, 3 * width + mlp_width)?,
            attn_out,
            mlp_out,
            norm: QkNorm::new(&w.at("norm"), config.head_dim)?,
            modulation: ModulationLayer::new(&w.at("modulation").at("lin"), width, PARTS)?,
            width,
            mlp_width,
            heads: config.heads,
        })
    }

    pub(crate) fn table(&self, vectors: &Tensor) -> Result<Table> {
        self.modulation.table(vectors)
    }

    /// Runs the block on `x` [B, T + L, D]; returns the same shape.
    pub(crate) fn forward(&self, x: &Tensor, rope: &Rope, table: &Table, step: i64) -> Result<Tensor> {
        let [modulation] = table.step(step)?;
        let normed = modulation.modulate(x)?;
        let qkv = self
            .linear1
            .forward_rows(&normed, 0, 3 * self.width)?
            .f_unflatten(-1, [3, self.heads, -1])?;
        let part = |index: i64| qkv.f_select(2, index); // [B, L, H, D/H]
        let (q, k) = (self.norm.query(&part(0)?, rope)?, self.norm.key(&part(1)?, rope)?);
        self.finish(x, &normed, &attend_tokens(&q, &k, &part(2)?)?, &modulation)
    }

    /// Runs the last block, which outputs only the target's tokens `start..start + count`: queries, MLP and
    /// output are computed for those, keys and values for all.
    ///
    /// Shapes: `x` [B, T + L, D]; returns [B, count, D].
    pub(crate) fn forward_target(
        &self,
        x: &Tensor,
        rope: &Rope,
        table: &Table,
        step: i64,
        start: i64,
        count: i64,
    ) -> Result<Tensor> {
        let [modulation] = table.step(step)?;
        let normed = modulation.modulate(x)?;
        let target = normed.f_narrow(1, start, count)?;
        let q = self
            .linear1
            .forward_rows(&target, 0, self.width)?
            .f_unflatten(-1, [self.heads, -1])?;
        let kv = self
            .linear1
            .forward_rows(&normed, self.width, 2 * self.width)?
            .f_unflatten(-1, [2, self.heads, -1])?;
        let q = self.norm.query(&q, &rope.range(start, count)?)?;
        let k = self.norm.key(&kv.f_select(2, 0)?, rope)?;
        let attn = attend_tokens(&q, &k, &kv.f_select(2, 1)?)?;
        self.finish(&x.f_narrow(1, start, count)?, &target, &attn, &modulation)
    }

    /// Computes the MLP parallel to the attention, the output projection of both, gate and residual.
    fn finish(&self, x: &Tensor, normed: &Tensor, attn: &Tensor, modulation: &Modulation) -> Result<Tensor> {
        let mlp = gelu(self.linear1.forward_rows(normed, 3 * self.width, self.mlp_width)?)?;
        let out = self.mlp_out.forward_add(&mlp, &self.attn_out.forward(attn)?)?;
        clamp_half(modulation.add_gated(x, &out)?)
    }
}
