//! Double-stream block: text and image have separate weights and share the attention.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/modules/layers.py`, `DoubleStreamBlock`.

use kontext_core::{Result, Tensor};
use kontext_kernels::{Kernels, QkWeights};
use kontext_nn::Weights;

use crate::DitConfig;
use crate::flow::{Flow, Norm};
use crate::modulation::{Modulation, ModulationLayer, PlainNorm, Scales, Table};
use crate::qk_norm::{self, QkNorm, norm_and_rotate};
use crate::rows::{Rows, takes_fp8};
use crate::step::Step;
use crate::stream::{Stream, clamp_half};

/// Number of modulation vectors of a stream: twice (shift, scale, gate).
pub(crate) const PARTS: i64 = 6;

/// A double-stream block.
#[derive(Debug)]
pub(crate) struct DoubleBlock {
    img: Stream,
    txt: Stream,
    img_mod: ModulationLayer,
    txt_mod: ModulationLayer,
    heads: i64,
}

/// Modulation of a double-stream block for every step.
#[derive(Debug)]
pub(crate) struct DoubleTable {
    img: Table,
    txt: Table,
}

impl DoubleTable {
    /// Builds a table of the same form from replacements for [`DoubleTable::values`].
    pub(crate) fn with(&self, img: &Tensor, txt: &Tensor) -> Self {
        Self {
            img: self.img.with(img),
            txt: self.txt.with(txt),
        }
    }

    /// Returns the modulation of the norm `index` of a step as a kernel reads it, for text and image.
    pub(crate) fn norms(&self, step: i64, index: i64) -> Result<[PlainNorm; 2]> {
        Ok([self.txt.norm(step, index)?, self.img.norm(step, index)?])
    }

    /// Returns the gate after the norm `index` of a step, for text and image.
    fn gates(&self, step: i64, index: i64) -> Result<[Tensor; 2]> {
        Ok([self.txt.gate(step, index)?, self.img.gate(step, index)?])
    }

    /// Returns the modulated norm of image tokens that the block reads first.
    pub(crate) fn modulate_image(&self, x: &Tensor, step: i64) -> Result<Tensor> {
        let [first, _]: [Modulation; 2] = self.img.step(step)?;
        first.modulate(x)
    }

    /// Returns the values of the image and text streams, each [S, P, B, D].
    pub(crate) fn values(&self) -> Vec<Tensor> {
        vec![self.img.values(), self.txt.values()]
    }
}

impl DoubleBlock {
    pub(crate) fn new(w: &Weights, config: &DitConfig) -> Result<Self> {
        let modulation = |name: &str| ModulationLayer::new(&w.at(name).at("lin"), config.width(), PARTS);
        Ok(Self {
            img: Stream::new(w, "img", config)?,
            txt: Stream::new(w, "txt", config)?,
            img_mod: modulation("img_mod")?,
            txt_mod: modulation("txt_mod")?,
            heads: config.heads,
        })
    }

    pub(crate) fn table(&self, vectors: &Tensor, scales: Scales) -> Result<DoubleTable> {
        Ok(DoubleTable {
            img: self.img_mod.table(vectors, scales)?,
            txt: self.txt_mod.table(vectors, scales)?,
        })
    }

    /// Runs the block on `txt` [B, T, D] and `img` [B, L, D]; returns the same shapes.
    pub(crate) fn forward(
        &self,
        txt: &Tensor,
        img: &Tensor,
        table: &DoubleTable,
        step: Step<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let [img_attn, img_mlp]: [Modulation; 2] = table.img.step(step.index)?;
        let [txt_attn, txt_mlp]: [Modulation; 2] = table.txt.step(step.index)?;
        let (text, image) = (txt.size()[1], img.size()[1]);

        let qkv = self.qkv(&txt_attn.modulate(txt)?, &img_attn.modulate(img)?)?;
        let qkv = qkv.f_unflatten(-1, [3, self.heads, -1])?; // [B, T + L, 3, H, D/H]
        let qk = norm_and_rotate(&qkv.f_narrow(2, 0, 2)?, &self.norm_weights(text, image)?, step)?;
        let attn = step
            .kv
            .attend(&qk.f_select(2, 0)?, &qk.f_select(2, 1)?, &qkv.f_select(2, 2)?)?; // [B, T + L, D]

        let img = img_attn.add_gated(img, &self.img.proj(&attn.f_narrow(1, text, image)?)?)?;
        let img = img_mlp.add_gated(&img, &self.img.mlp(&img_mlp.modulate(&img)?, step.arithmetic)?)?;
        let txt = txt_attn.add_gated(txt, &self.txt.proj(&attn.f_narrow(1, 0, text)?)?)?;
        let txt = txt_mlp.add_gated(&txt, &self.txt.mlp(&txt_mlp.modulate(&txt)?, step.arithmetic)?)?;
        Ok((clamp_half(txt)?, img))
    }

    /// Returns `true` if kernels write the first norm in fp8: the projections of both streams take it so.
    pub(crate) fn first_norm_in_fp8(&self, kernels: &Kernels) -> bool {
        let takes = |stream: &Stream| takes_fp8(kernels, &stream.qkv, 3 * stream.width);
        takes(&self.txt) && takes(&self.img)
    }

    /// Runs the block by kernels; `next` is the norm after it.
    pub(crate) fn forward_fused(
        &self,
        flow: &mut Flow<'_>,
        table: &DoubleTable,
        step: Step<'_>,
        next: &Norm,
    ) -> Result<()> {
        let (batch, tokens, width) = flow.x.size3()?;
        let absent = step.kv.absent();
        let joint = Tensor::f_empty([batch, tokens + absent, 3 * width], (flow.x.kind(), flow.x.device()))?;
        let qkv = match absent {
            0 => joint.shallow_clone(),
            _ => joint.f_narrow(1, 0, tokens)?,
        };
        let ([txt, img], [txt_qkv, img_qkv]) = (flow.normed_streams()?, flow.streams(&qkv)?);
        txt.project_to(&self.txt.qkv, 0..3 * width, &txt_qkv)?;
        img.project_to(&self.img.qkv, 0..3 * width, &img_qkv)?;
        let ([text_q, text_k], [image_q, image_k]) = (self.txt.norm.vectors()?, self.img.norm.vectors()?);
        let weights = QkWeights {
            text_q: &text_q,
            text_k: &text_k,
            image_q: &image_q,
            image_k: &image_k,
        };
        flow.kernels
            .qk_norm_rope(&qkv, &weights, step.rope.pairs(), self.heads, flow.text, qk_norm::EPS)?;
        let attn = step.kv.attend_joint(&joint, self.heads, 0, tokens)?;

        let y = attn.f_empty_like()?;
        let [txt_y, img_y] = flow.streams(&y)?;
        let attn = if self.txt.proj_takes_fp8(flow.kernels) && self.img.proj_takes_fp8(flow.kernels) {
            Rows::fp8(flow.kernels.attention_fp8(&attn)?)?
        } else {
            Rows::Wide(attn)
        };
        let [txt, img] = flow.row_streams(&attn)?;
        self.txt.proj_to(&txt, &txt_y)?;
        self.img.proj_to(&img, &img_y)?;
        let norm = Norm {
            modulation: table.norms(step.index, 1)?,
            fp8: self.txt.mlp_takes_fp8(flow.kernels) && self.img.mlp_takes_fp8(flow.kernels),
        };
        flow.add(&y, table.gates(step.index, 0)?.each_ref(), &norm)?;

        let [txt, img] = flow.normed_streams()?;
        self.txt.mlp_to(flow.kernels, &txt, &txt_y)?;
        self.img.mlp_to(flow.kernels, &img, &img_y)?;
        flow.add(&y, table.gates(step.index, 1)?.each_ref(), next)
    }

    /// Returns `true` if a weight or an active adapter requires a gradient.
    pub(crate) fn is_trained(&self) -> bool {
        self.txt.is_trained() || self.img.is_trained()
    }

    /// Projects the modulated `txt` [B, T, D] and `img` [B, L, D] to queries, keys and values of one sequence,
    /// [B, T + L, 3 D].
    fn qkv(&self, txt: &Tensor, img: &Tensor) -> Result<Tensor> {
        let (txt_layer, img_layer) = (&self.txt.qkv, &self.img.qkv);
        if txt_layer.wants_gradient(txt) || img_layer.wants_gradient(img) {
            return Ok(Tensor::f_cat(&[txt_layer.forward(txt)?, img_layer.forward(img)?], 1)?);
        }
        let (batch, text, width) = txt.size3()?;
        let image = img.size()[1];
        let joint = Tensor::f_empty([batch, text + image, 3 * width], (img.kind(), img.device()))?;
        txt_layer.forward_to(txt, 0..3 * width, &joint.f_narrow(1, 0, text)?)?;
        img_layer.forward_to(img, 0..3 * width, &joint.f_narrow(1, text, image)?)?;
        Ok(joint)
    }

    /// Returns the weights of the query and key norms for each token, [T + L, 2, 1, D/H] in f32.
    fn norm_weights(&self, text: i64, image: i64) -> Result<Tensor> {
        let each = |norm: &QkNorm, count: i64| -> Result<Tensor> {
            Ok(norm.weights()?.f_unsqueeze(0)?.f_expand([count, -1, -1, -1], false)?)
        };
        Ok(Tensor::f_cat(
            &[each(&self.txt.norm, text)?, each(&self.img.norm, image)?],
            0,
        )?)
    }
}
