//! A step by kernels: norms, gates, residuals and rotations of both streams in one sequence, without gradients.
//!
//! The residual stream is one tensor that each branch is added to in place; the same launch writes its norm for the
//! layer that follows, in the next block if need be.

use kontext_core::{Kind, Result, Tensor};
use kontext_kernels::{Branch, Kernels, NormModulation};

use crate::double::DoubleBlock;
use crate::model::expand;
use crate::modulation::{EPS, PlainNorm};
use crate::piece::Part;
use crate::single::SingleBlock;
use crate::step::Step;
use crate::{Arithmetic, Dit, Run};

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
    fn new(kernels: &'a Kernels, x: Tensor, text: i64, [txt, img]: &[PlainNorm; 2]) -> Result<Self> {
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

impl Part<'_> {
    /// Returns the modulation of the part's first norm, for text and image.
    fn first_norm(&self, step: i64) -> Result<[PlainNorm; 2]> {
        match self {
            Part::Double(_, table) => table.norms(step, 0),
            Part::Single { table, .. } | Part::Last { table, .. } => Ok([table.norm(step, 0)?, table.norm(step, 0)?]),
        }
    }
}

impl Dit {
    /// Sets the kernels of the model's device, or removes them (default: none).
    ///
    /// Runs in bf16 that are prepared afterwards use them in [`Dit::forward`], unless their roundings are those
    /// of a reference ([`Run::arithmetic`]) or a gradient is wanted. A [`crate::Piece`] never does.
    pub fn set_kernels(&mut self, kernels: Option<Kernels>) {
        self.kernels = kernels;
    }

    /// Returns `true` if kernels are set and fit a run in `kind`.
    pub(crate) fn has_kernels_for(&self, kind: Kind, x: &Tensor) -> bool {
        let fits = |kernels: &Kernels| kernels.device() == x.device();
        kind == Kind::BFloat16 && self.kernels.as_ref().is_some_and(fits)
    }

    /// Returns the kernels for a step of a run on `target`, if it is to use them.
    pub(crate) fn kernels_for(&self, run: &Run, target: &Tensor) -> Option<&Kernels> {
        let wanted = run.arithmetic == Arithmetic::Fewest && run.plain_scales() && target.kind() == Kind::BFloat16;
        self.kernels
            .as_ref()
            .filter(|_| wanted && !self.wants_gradient(run, target))
    }

    /// Returns `true` if the velocity has a gradient outside [`tch::no_grad`].
    fn wants_gradient(&self, run: &Run, target: &Tensor) -> bool {
        self.img_in.wants_gradient(target)
            || run.requires_grad()
            || self.last_linear.wants_gradient(target)
            || self.double_blocks.iter().any(DoubleBlock::is_trained)
            || self.single_blocks.iter().any(SingleBlock::is_trained)
    }

    /// Computes [`Dit::forward`] by kernels.
    pub(crate) fn forward_fused(&self, kernels: &Kernels, run: &Run, step: i64, target: &Tensor) -> Result<Tensor> {
        let text = run.txt.size()[1];
        let parts: Vec<_> = self.pieces_at(run, step).map(|piece| piece.part).collect();
        let norms = parts
            .iter()
            .map(|part| part.first_norm(step))
            .collect::<Result<Vec<_>>>()?;
        let (Some(first), step) = (
            norms.first(),
            Step {
                rope: &run.rope,
                index: step,
                arithmetic: run.arithmetic,
            },
        ) else {
            return Err(kontext_core::Error::bug("a step without pieces"));
        };
        let mut flow = Flow::new(kernels, self.enter_joint(run, target)?, text, first)?;
        // The norm after a part is the next part's; the last layer has none after it.
        for (part, next) in parts.iter().zip(&norms[1..]) {
            match part {
                Part::Double(block, table) => block.forward_fused(&mut flow, table, step, next)?,
                Part::Single {
                    block,
                    table,
                    last: false,
                } => block.forward_fused(&mut flow, table, step, next)?,
                Part::Single {
                    block,
                    table,
                    last: true,
                } => {
                    block.forward_target_fused(&mut flow, table, step, run.target, next)?;
                }
                Part::Last { .. } => {}
            }
        }
        if flow.text > 0 || self.single_blocks.is_empty() {
            flow.keep(text, run.target)?;
        }
        self.last_linear.forward(&flow.normed)
    }

    /// Writes text, target and context to one sequence, [N, T + L + R, D].
    fn enter_joint(&self, run: &Run, target: &Tensor) -> Result<Tensor> {
        let (batch, text, width) = (target.size()[0], run.txt.size()[1], self.config.width());
        let context = run.context.as_ref().map_or(0, |context| context.size()[1]);
        let x = Tensor::f_empty(
            [batch, text + run.target + context, width],
            (target.kind(), target.device()),
        )?;
        x.f_narrow(1, 0, text)?.f_copy_(&expand(&run.txt, batch)?)?;
        self.img_in
            .forward_to(target, 0..width, &x.f_narrow(1, text, run.target)?)?;
        if let Some(features) = &run.context {
            x.f_narrow(1, text + run.target, context)?
                .f_copy_(&expand(features, batch)?)?;
        }
        Ok(x)
    }
}
