//! The work of a step.

/// Work of one step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepWork {
    /// All blocks are computed.
    Computed,
    /// The change that the blocks make is reused: input projection and last layer are computed, and by
    /// [`FirstBlock`](crate::FirstBlock) the first block.
    Skipped,
}
