//! The sequence that kernels update from branch to branch.

use kontext_core::{Result, Tensor};
use kontext_kernels::{Branch, Kernels, NormModulation};

use crate::modulation::{EPS, PlainNorm};
use crate::rows::Rows;

/// The sequence between two branches.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    pub(crate) kernels: &'a Kernels,
    /// Text, target and reference tokens [N, T + L + R, D], or some of them; updated in place.
    pub(crate) x: Tensor,
    /// The modulated norm of `x`, of the same shape.
    pub(crate) normed: Rows,
    /// Number of text tokens at the start of `x`.
    pub(crate) text: i64,
}

/// A norm of the sequence.
#[derive(Debug)]
pub(crate) struct Norm {
    /// The modulation of text and image.
    pub(crate) modulation: [PlainNorm; 2],
    /// Set if it is written in fp8.
    pub(crate) fp8: bool,
}

impl<'a> Flow<'a> {
    /// Norms the first block's input.
    pub(crate) fn new(kernels: &'a Kernels, x: Tensor, text: i64, norm: &Norm) -> Result<Self> {
        let normed = norm.of(kernels, &x, None, text)?;
        Ok(Self {
            kernels,
            x,
            normed,
            text,
        })
    }

    /// Adds the output `y` of a branch, times the gates of text and image, and norms the sum.
    pub(crate) fn add(&mut self, y: &Tensor, gates: [&Tensor; 2], norm: &Norm) -> Result<()> {
        let branch = Branch {
            y,
            text_gate: gates[0],
            image_gate: gates[1],
        };
        self.normed = norm.of(self.kernels, &self.x, Some(&branch), self.text)?;
        Ok(())
    }

    /// Returns the text's and the image's rows of the norm.
    pub(crate) fn normed_streams(&self) -> Result<[Rows; 2]> {
        self.row_streams(&self.normed)
    }

    /// Returns the text's and the image's rows of activations of the sequence.
    pub(crate) fn row_streams(&self, rows: &Rows) -> Result<[Rows; 2]> {
        let image = self.x.size3()?.1 - self.text;
        Ok([rows.range(0, self.text)?, rows.range(self.text, image)?])
    }

    /// Returns the text's and the image's rows of a tensor of the sequence.
    pub(crate) fn streams(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        let rows = x.size()[1];
        Ok([
            x.f_narrow(1, 0, self.text)?,
            x.f_narrow(1, self.text, rows - self.text)?,
        ])
    }

    /// Copies the target's `count` tokens, which come after the text.
    pub(crate) fn copied(&self, count: i64) -> Result<Tensor> {
        let tokens = self.x.f_narrow(1, self.text, count)?;
        let mut copy = tokens.f_empty_like()?;
        copy.f_copy_(&tokens)?;
        Ok(copy)
    }

    /// Narrows the sequence to the tokens `start..start + count`, which are no text.
    pub(crate) fn keep(&mut self, start: i64, count: i64) -> Result<()> {
        self.x = self.x.f_narrow(1, start, count)?;
        self.normed = self.normed.range(start, count)?;
        self.text = 0;
        Ok(())
    }
}

impl Norm {
    /// Adds a branch to `x` in place, if there is one, and norms `x`.
    fn of(&self, kernels: &Kernels, x: &Tensor, branch: Option<&Branch<'_>>, text: i64) -> Result<Rows> {
        let [txt, img] = self.modulation.each_ref().map(modulation);
        if self.fp8 {
            return Rows::fp8(kernels.residual_norm_fp8(x, branch, &txt, &img, text, EPS)?);
        }
        Ok(Rows::Wide(kernels.residual_norm(x, branch, &txt, &img, text, EPS)?))
    }
}

fn modulation(norm: &PlainNorm) -> NormModulation<'_> {
    NormModulation {
        scale: &norm.scale,
        shift: &norm.shift,
    }
}
