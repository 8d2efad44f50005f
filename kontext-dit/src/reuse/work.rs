//! The work of a step.

/// Work of one step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepWork {
    /// All blocks are computed, for text, target and references.
    Computed,
    /// All blocks are computed, for text and target; the references' keys and values are those of the last computed step.
    WithoutReferences,
    /// All blocks are computed, for the text and this number of the target's tokens, the edited ones; the others' keys and
    /// values, and the velocity of the unedited tokens, are those of the last computed step.
    Edited(u32),
    /// The edited tokens' velocity is that of the step before times a published ratio, and the others' that of the last computed
    /// step.
    Estimated,
    /// The change that the blocks make is reused: input projection and last layer are computed, and by
    /// [`FirstBlock`](crate::FirstBlock) the first block.
    Skipped,
}
