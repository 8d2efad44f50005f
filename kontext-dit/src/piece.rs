//! The transformer split into pieces with few activations between them.

use kontext_core::{During, Error, Result, Tensor};
use kontext_nn::Linear;

use crate::double::{DoubleBlock, DoubleTable};
use crate::modulation::{Table, modulate};
use crate::rope::Rope;
use crate::single::SingleBlock;

/// One piece of a step: a block, or the last layer. Created by [`crate::Dit::pieces`].
///
/// A piece depends only on the arguments of [`Piece::forward`] (and the positions), so it can be recomputed,
/// as activation checkpointing in training requires.
#[derive(Debug)]
pub struct Piece<'a> {
    pub(crate) part: Part<'a>,
    pub(crate) rope: &'a Rope,
    pub(crate) step: i64,
    /// Number of text tokens.
    pub(crate) text: i64,
    /// Number of target tokens.
    pub(crate) target: i64,
}

#[derive(Debug)]
pub(crate) enum Part<'a> {
    Double(&'a DoubleBlock, &'a DoubleTable),
    Single {
        block: &'a SingleBlock,
        table: &'a Table,
        first: bool,
        last: bool,
    },
    Last {
        linear: &'a Linear,
        table: &'a Table,
    },
}

impl Piece<'_> {
    /// Returns the run's modulation for this piece.
    #[must_use]
    pub fn modulation(&self) -> Vec<Tensor> {
        match &self.part {
            Part::Double(_, table) => table.values(),
            Part::Single { table, .. } | Part::Last { table, .. } => vec![table.values()],
        }
    }

    /// Runs the piece on the state returned by the previous piece (or by [`crate::Dit::enter`]) and its
    /// modulation.
    ///
    /// The state is text and image between double blocks, their joint sequence between single blocks, the
    /// target's tokens after the last single block, and the velocity after the last piece.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for the state of another piece, [`Error::Torch`] if libtorch fails.
    pub fn forward(&self, state: &[Tensor], modulation: &[Tensor]) -> Result<Vec<Tensor>> {
        self.compute(state, modulation).during("running the transformer")
    }

    fn compute(&self, state: &[Tensor], modulation: &[Tensor]) -> Result<Vec<Tensor>> {
        match (&self.part, modulation) {
            (Part::Double(block, _), [img, txt]) => {
                let table = DoubleTable::of(img, txt);
                let (txt, img) = block.forward(at(state, 0)?, at(state, 1)?, self.rope, &table, self.step)?;
                Ok(vec![txt, img])
            }
            (Part::Single { block, first, last, .. }, [values]) => {
                let table = Table::of(values);
                let joined = if *first {
                    Tensor::f_cat(state, 1)?
                } else {
                    at(state, 0)?.shallow_clone()
                };
                if *last {
                    let target = block.forward_target(&joined, self.rope, &table, self.step, self.text, self.target)?;
                    return Ok(vec![target]);
                }
                Ok(vec![block.forward(&joined, self.rope, &table, self.step)?])
            }
            (Part::Last { linear, .. }, [values]) => {
                // Without single blocks the target comes directly from the image stream.
                let target = state
                    .last()
                    .ok_or_else(|| wrong("an empty state"))?
                    .f_narrow(1, 0, self.target)?;
                let (shift, scale) = Table::of(values).last(self.step)?;
                Ok(vec![linear.forward(&modulate(&target, &shift, &scale)?)?])
            }
            _ => Err(wrong(&format!("{} tensors of modulation", modulation.len()))),
        }
    }
}

/// Returns the velocity [N, L, out_channels] in the state returned by the last piece.
///
/// # Errors
/// [`Error::InvalidArgument`] for an empty state.
pub fn velocity_of(state: &[Tensor]) -> Result<&Tensor> {
    at(state, 0)
}

fn at(state: &[Tensor], index: usize) -> Result<&Tensor> {
    state
        .get(index)
        .ok_or_else(|| wrong(&format!("{} tensors", state.len())))
}

fn wrong(got: &str) -> Error {
    Error::invalid("state of a piece", "what the piece before it returned", got)
}
