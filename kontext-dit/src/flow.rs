//! The sequence that kernels update from branch to branch.

use kontext_core::{Result, Tensor};
use kontext_kernels::{Branch, Kernels, NormModulation};

use crate::modulation::{EPS, PlainNorm};

/// The sequence between two branches.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    pub(crate) kernels: &'a Kernels,
    /// Text, target and reference tokens [N, T + L + R, D], or some of them; updated in place.
    pub(crate) x: Tensor,
    /// The modulated norm of `x`, of the same shape.
    pub(crate) normed: Tensor,
    /// Number of text tokens at the start of `x`.
    pub(crate) text: i64,
}

impl<'a> Flow<'a> {
    /// Norms the first block's input.
    pub(crate) fn new(kernels: &'a Kernels, x: Tensor, text: i64, [txt, img]: &[PlainNorm; 2]) -> Result<Self> {
        let normed = kernels.residual_norm(&x, None, &modulation(txt), &modulation(img), text, EPS)?;
        Ok(Self {
            kernels,
            x,
            normed,
            text,
        })
    }

    /// Adds the output `y` of a branch, times the gates of text and image, and norms the sum.
    pub(crate) fn add(&mut self, y: &Tensor, gates: [&Tensor; 2], [txt, img]: &[PlainNorm; 2]) -> Result<()> {
        let branch = Branch {
            y,
            text_gate: gates[0],
            image_gate: gates[1],
        };
        let norms = [modulation(txt), modulation(img)];
        self.normed = self
            .kernels
            .residual_norm(&self.x, Some(&branch), &norms[0], &norms[1], self.text, EPS)?;
        Ok(())
    }

    /// Returns the text's and the image's rows of a tensor of the sequence.
    pub(crate) fn streams(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        let rows = x.size()[1];
        Ok([
            x.f_narrow(1, 0, self.text)?,
            x.f_narrow(1, self.text, rows - self.text)?,
        ])
    }

    /// Narrows the sequence to the tokens `start..start + count`, which are no text.
    pub(crate) fn keep(&mut self, start: i64, count: i64) -> Result<()> {
        self.x = self.x.f_narrow(1, start, count)?;
        self.normed = self.normed.f_narrow(1, start, count)?;
        self.text = 0;
        Ok(())
    }
}

fn modulation(norm: &PlainNorm) -> NormModulation<'_> {
    NormModulation {
        scale: &norm.scale,
        shift: &norm.shift,
    }
}
