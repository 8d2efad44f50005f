//! A step by kernels: norms, gates, residuals and rotations of both streams in one sequence, without gradients.
//!
//! The residual stream is one tensor that each branch is added to in place; the same launch writes its norm for the
//! layer that follows, in the next block if need be. Where all layers that read a norm multiply in fp8, it is written
//! in fp8, and so is the input of an MLP's second layer.

use kontext_core::{Error, Kind, Result, Tensor};
use kontext_kernels::Kernels;

use crate::double::DoubleBlock;
use crate::flow::{Flow, Norm};
use crate::follow::Follow;
use crate::model::expand;
use crate::pass::Pass;
use crate::piece::Part;
use crate::single::SingleBlock;
use crate::{Arithmetic, Dit, Run};

impl Part<'_> {
    /// Returns the part's first norm.
    pub(crate) fn first_norm(&self, step: i64, kernels: &Kernels) -> Result<Norm> {
        let modulation = match self {
            Part::Double(_, table) => table.norms(step, 0)?,
            Part::Single { table, .. } | Part::Last { table, .. } => [table.norm(step, 0)?, table.norm(step, 0)?],
        };
        let fp8 = match self {
            Part::Double(block, _) => block.first_norm_in_fp8(kernels),
            Part::Single { block, .. } => block.norm_in_fp8(kernels),
            Part::Last { .. } => false,
        };
        Ok(Norm { modulation, fp8 })
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
    pub(crate) fn wants_gradient(&self, run: &Run, target: &Tensor) -> bool {
        self.img_in.wants_gradient(target)
            || run.requires_grad()
            || self.last_linear.wants_gradient(target)
            || self.double_blocks.iter().any(DoubleBlock::is_trained)
            || self.single_blocks.iter().any(SingleBlock::is_trained)
    }

    /// Computes [`Dit::forward`] by kernels; `follow` observes the step.
    pub(crate) fn forward_fused(
        &self,
        kernels: &Kernels,
        run: &Run,
        step: i64,
        target: &Tensor,
        pass: &Pass<'_>,
        follow: &mut impl Follow,
    ) -> Result<Tensor> {
        let text = run.txt.size()[1];
        let pieces: Vec<_> = self.pieces_at(run, step, pass).collect::<Result<_>>()?;
        let norms = pieces
            .iter()
            .map(|piece| piece.part.first_norm(step, kernels))
            .collect::<Result<Vec<_>>>()?;
        let Some(first) = norms.first() else {
            return Err(Error::bug("a step without pieces"));
        };
        let mut flow = Flow::new(kernels, self.enter_joint(run, target, pass)?, text, first)?;
        follow.entered(|| flow.copied(pass.target))?;
        // The norm after a part is the next part's; the last layer has none after it.
        for (index, (piece, next)) in pieces.iter().zip(&norms[1..]).enumerate() {
            let step = piece.step;
            match &piece.part {
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
                    block.forward_target_fused(&mut flow, table, step, pass.target, next)?;
                }
                Part::Last { .. } => {}
            }
            if index == 0
                && let Some(tokens) = follow.after_first(|| flow.copied(pass.target))?
            {
                return self.leave(run, step.index, tokens);
            }
        }
        if flow.text > 0 || self.single_blocks.is_empty() {
            flow.keep(text, pass.target)?;
        }
        follow.after_last(|| Ok(flow.x.shallow_clone()))?;
        flow.normed.project(&self.last_linear, 0..self.config.out_channels)
    }

    /// Writes text, target and context to one sequence, [N, T + L + R, D].
    fn enter_joint(&self, run: &Run, target: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (batch, text, width) = (target.size()[0], run.txt.size()[1], self.config.width());
        let context = pass.context.map_or(0, |context| context.size()[1]);
        let x = Tensor::f_empty(
            [batch, text + pass.target + context, width],
            (target.kind(), target.device()),
        )?;
        x.f_narrow(1, 0, text)?.f_copy_(&expand(&run.txt, batch)?)?;
        self.img_in
            .forward_to(target, 0..width, &x.f_narrow(1, text, pass.target)?)?;
        if let Some(features) = pass.context {
            x.f_narrow(1, text + pass.target, context)?
                .f_copy_(&expand(features, batch)?)?;
        }
        Ok(x)
    }
}
