//! Double-stream block: text and image have separate weights and share the attention.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/modules/layers.py`, `DoubleStreamBlock`.

use kontext_core::{Result, Tensor};
use kontext_nn::Weights;

use crate::DitConfig;
use crate::modulation::{Modulation, ModulationLayer, Table};
use crate::rope::Rope;
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
}

/// Modulation of a double-stream block for every step.
#[derive(Debug)]
pub(crate) struct DoubleTable {
    img: Table,
    txt: Table,
}

impl DoubleTable {
    /// Builds the table from the values of the image and text streams.
    pub(crate) fn of(img: &Tensor, txt: &Tensor) -> Self {
        Self {
            img: Table::of(img),
            txt: Table::of(txt),
        }
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
        })
    }

    pub(crate) fn table(&self, vectors: &Tensor) -> Result<DoubleTable> {
        Ok(DoubleTable {
            img: self.img_mod.table(vectors)?,
            txt: self.txt_mod.table(vectors)?,
        })
    }

    /// Runs the block on `txt` [B, T, D] and `img` [B, L, D]; returns the same shapes.
    pub(crate) fn forward(
        &self,
        txt: &Tensor,
        img: &Tensor,
        rope: &Rope,
        table: &DoubleTable,
        step: i64,
    ) -> Result<(Tensor, Tensor)> {
        let [img_attn, img_mlp]: [Modulation; 2] = table.img.step(step)?;
        let [txt_attn, txt_mlp]: [Modulation; 2] = table.txt.step(step)?;
        let (text, image) = (txt.size()[1], img.size()[1]);

        let txt_qkv = self.txt.qkv(&txt_attn.modulate(txt)?, &rope.range(0, text)?)?;
        let img_qkv = self.img.qkv(&img_attn.modulate(img)?, &rope.from(text)?)?;
        let attn = txt_qkv.join(&img_qkv)?.attend()?; // [B, T + L, D]

        let img = img_attn.add_gated(img, &self.img.proj(&attn.f_narrow(1, text, image)?)?)?;
        let img = img_mlp.add_gated(&img, &self.img.mlp(&img_mlp.modulate(&img)?)?)?;
        let txt = txt_attn.add_gated(txt, &self.txt.proj(&attn.f_narrow(1, 0, text)?)?)?;
        let txt = txt_mlp.add_gated(&txt, &self.txt.mlp(&txt_mlp.modulate(&txt)?)?)?;
        Ok((clamp_half(txt)?, img))
    }
}
