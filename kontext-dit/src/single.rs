//! Single-stream block: one set of weights for text and image, attention and MLP in parallel.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/modules/layers.py`, `SingleStreamBlock`.

use kontext_core::{Result, Tensor};
use kontext_kernels::{Kernels, QkWeights};
use kontext_nn::{Linear, Weights};

use crate::flow::{Flow, Norm};
use crate::modulation::{Modulation, ModulationLayer, Scales, Table};
use crate::qk_norm::{self, QkNorm, norm_and_rotate};
use crate::rows::{Rows, takes_fp8};
use crate::step::Step;
use crate::stream::{clamp_half, gelu};
use crate::{Arithmetic, DitConfig};

/// Number of modulation vectors: (shift, scale, gate).
pub(crate) const PARTS: i64 = 3;

/// A single-stream block.
///
/// `linear2` projects the concatenation of attention and MLP; it is split into two layers whose products are
/// added, so the concatenation is never materialised, unless a kernel writes it in fp8.
#[derive(Debug)]
pub(crate) struct SingleBlock {
    linear1: Linear,
    linear2: Linear,
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
            linear2,
            attn_out,
            mlp_out,
            norm: QkNorm::new(&w.at("norm"), config.head_dim)?,
            modulation: ModulationLayer::new(&w.at("modulation").at("lin"), width, PARTS)?,
            width,
            mlp_width,
            heads: config.heads,
        })
    }

    pub(crate) fn table(&self, vectors: &Tensor, scales: Scales) -> Result<Table> {
        self.modulation.table(vectors, scales)
    }

    /// Runs the block on `x` [B, T + L, D]; returns the same shape.
    pub(crate) fn forward(&self, x: &Tensor, table: &Table, step: Step<'_>) -> Result<Tensor> {
        let [modulation] = table.step(step.index)?;
        let normed = modulation.modulate(x)?;
        let qkv = self
            .linear1
            .forward_rows(&normed, 0, 3 * self.width)?
            .f_unflatten(-1, [3, self.heads, -1])?; // [B, T + L, 3, H, D/H]
        let qk = norm_and_rotate(&qkv.f_narrow(2, 0, 2)?, &self.norm.weights()?, step)?;
        let attn = step
            .kv
            .attend(&qk.f_select(2, 0)?, &qk.f_select(2, 1)?, &qkv.f_select(2, 2)?)?;
        self.finish(x, &normed, &attn, &modulation, step)
    }

    /// Runs the last block, which outputs only the target's tokens `start..start + count`: queries, MLP and
    /// output are computed for those, keys and values for all.
    ///
    /// Shapes: `x` [B, T + L, D]; returns [B, count, D].
    pub(crate) fn forward_target(
        &self,
        x: &Tensor,
        table: &Table,
        step: Step<'_>,
        start: i64,
        count: i64,
    ) -> Result<Tensor> {
        let [modulation] = table.step(step.index)?;
        let normed = modulation.modulate(x)?;
        let target = normed.f_narrow(1, start, count)?;
        let q = self
            .linear1
            .forward_rows(&target, 0, self.width)?
            .f_unflatten(-1, [1, self.heads, -1])?; // [B, count, 1, H, D/H]
        let kv = self
            .linear1
            .forward_rows(&normed, self.width, 2 * self.width)?
            .f_unflatten(-1, [2, self.heads, -1])?;
        let weights = self.norm.weights()?;
        let rope = &step.rope.range(start, count)?;
        let q = norm_and_rotate(&q, &weights.f_narrow(0, 0, 1)?, Step { rope, ..step })?;
        let k = norm_and_rotate(&kv.f_narrow(2, 0, 1)?, &weights.f_narrow(0, 1, 1)?, step)?;
        let attn = step
            .kv
            .attend(&q.f_squeeze_dim(2)?, &k.f_squeeze_dim(2)?, &kv.f_select(2, 1)?)?;
        self.finish(&x.f_narrow(1, start, count)?, &target, &attn, &modulation, step)
    }

    /// Returns `true` if kernels write the norm in fp8.
    pub(crate) fn norm_in_fp8(&self, kernels: &Kernels) -> bool {
        takes_fp8(kernels, &self.linear1, 3 * self.width + self.mlp_width)
    }

    /// Runs the block by kernels; `next` is the norm after it.
    pub(crate) fn forward_fused(&self, flow: &mut Flow<'_>, table: &Table, step: Step<'_>, next: &Norm) -> Result<()> {
        let (batch, tokens, width) = flow.x.size3()?;
        let joint = match step.kv.absent() {
            0 => {
                let joint = flow.normed.project(&self.linear1, 0..3 * width)?;
                self.norm_and_rotate(flow.kernels, &joint, step)?;
                joint
            }
            absent => {
                let joint = Tensor::f_empty([batch, tokens + absent, 3 * width], (flow.x.kind(), flow.x.device()))?;
                let qkv = joint.f_narrow(1, 0, tokens)?;
                flow.normed.project_to(&self.linear1, 0..3 * width, &qkv)?;
                self.norm_and_rotate(flow.kernels, &qkv, step)?;
                joint
            }
        };
        let attn = step.kv.attend_joint(&joint, self.heads, 0, tokens)?;
        self.finish_fused(flow, &attn, table, step, next)
    }

    /// Runs the last block by kernels; the sequence is the target's `count` tokens after it.
    pub(crate) fn forward_target_fused(
        &self,
        flow: &mut Flow<'_>,
        table: &Table,
        step: Step<'_>,
        count: i64,
        next: &Norm,
    ) -> Result<()> {
        let (batch, tokens, width) = flow.x.size3()?;
        let start = flow.text;
        // The queries of other tokens are not computed; the kernel moves what their memory holds.
        let absent = step.kv.absent();
        let joint = Tensor::f_empty([batch, tokens + absent, 3 * width], (flow.x.kind(), flow.x.device()))?;
        let qkv = match absent {
            0 => joint.shallow_clone(),
            _ => joint.f_narrow(1, 0, tokens)?,
        };
        flow.normed
            .project_to(&self.linear1, width..3 * width, &qkv.f_narrow(2, width, 2 * width)?)?;
        flow.keep(start, count)?;
        let target = qkv.f_narrow(1, start, count)?;
        flow.normed
            .project_to(&self.linear1, 0..width, &target.f_narrow(2, 0, width)?)?;
        self.norm_and_rotate(flow.kernels, &qkv, step)?;
        let attn = step.kv.attend_joint(&joint, self.heads, start, count)?;
        self.finish_fused(flow, &attn, table, step, next)
    }

    fn norm_and_rotate(&self, kernels: &Kernels, qkv: &Tensor, step: Step<'_>) -> Result<()> {
        let [q, k] = &self.norm.vectors()?;
        let weights = QkWeights {
            text_q: q,
            text_k: k,
            image_q: q,
            image_k: k,
        };
        kernels.qk_norm_rope(qkv, &weights, step.rope.pairs(), self.heads, 0, qk_norm::EPS)
    }

    fn finish_fused(
        &self,
        flow: &mut Flow<'_>,
        attn: &Tensor,
        table: &Table,
        step: Step<'_>,
        next: &Norm,
    ) -> Result<()> {
        let mlp = 3 * self.width..3 * self.width + self.mlp_width;
        let y = if takes_fp8(flow.kernels, &self.linear2, self.width) {
            let mlp = flow.normed.project(&self.linear1, mlp)?;
            let rows = Rows::fp8(flow.kernels.gelu_concat_fp8(Some(attn), &mlp)?)?;
            rows.project(&self.linear2, 0..self.width)?
        } else {
            let mlp = flow.normed.gelu(&self.linear1, mlp)?;
            self.mlp_out.accumulate(&mlp, self.attn_out.forward(attn)?)?
        };
        let gate = table.gate(step.index, 0)?;
        flow.add(&y, [&gate, &gate], next)
    }

    /// Returns `true` if a weight or an active adapter requires a gradient.
    pub(crate) fn is_trained(&self) -> bool {
        let layers = [&self.linear1, &self.attn_out, &self.mlp_out];
        self.norm.is_trained() || layers.into_iter().any(Linear::is_trained)
    }

    /// Computes the MLP parallel to the attention, the output projection of both, gate and residual.
    fn finish(
        &self,
        x: &Tensor,
        normed: &Tensor,
        attn: &Tensor,
        modulation: &Modulation,
        step: Step<'_>,
    ) -> Result<Tensor> {
        let out = self.branches(normed, attn, step.arithmetic)?;
        clamp_half(modulation.add_gated(x, &out)?)
    }

    /// Computes the MLP parallel to the attention, and the output projection of both.
    fn branches(&self, normed: &Tensor, attn: &Tensor, arithmetic: Arithmetic) -> Result<Tensor> {
        let features = 3 * self.width..3 * self.width + self.mlp_width;
        let mlp = gelu(&self.linear1, normed, features, arithmetic)?;
        self.mlp_out.accumulate(&mlp, self.attn_out.forward(attn)?)
    }
}
