//! The target's tokens on their way through a step.

use kontext_core::{Result, Tensor};

/// Observer of the target's tokens [N, L, D] between the blocks of a step.
///
/// The tokens come as closures, so that a step that is not followed makes neither views nor copies. A tensor that a closure
/// returns is not changed later.
pub(crate) trait Follow {
    /// Receives the input of the first block.
    fn entered(&mut self, tokens: impl FnOnce() -> Result<Tensor>) -> Result<()>;

    /// Receives the output of the first block. Returns the output of the last one if it replaces the computation of the
    /// others.
    fn after_first(&mut self, tokens: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>>;

    /// Receives the output of the last block.
    fn after_last(&mut self, tokens: impl FnOnce() -> Result<Tensor>) -> Result<()>;
}

/// Observer of nothing.
#[derive(Debug)]
pub(crate) struct Unfollowed;

impl Follow for Unfollowed {
    fn entered(&mut self, _: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        Ok(())
    }

    fn after_first(&mut self, _: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn after_last(&mut self, _: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        Ok(())
    }
}
