//! The work of a step.

use crate::StepKind;

/// Work of one step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepWork {
    /// All blocks are computed, for all tokens.
    Computed,
    /// All blocks are computed for text and target; the references' keys and values are those of the last full step.
    References,
    /// All blocks are computed for text and edited tokens; the others' keys and values, and their velocity, are those of the
    /// last full step.
    Region,
    /// The change that the blocks make is reused: input projection and last layer are computed, and by
    /// [`FirstBlock`](crate::FirstBlock) the first block. Of a step with an estimated velocity
    /// ([`StepKind::Estimated`](crate::StepKind::Estimated)) nothing is computed.
    Skipped,
}

impl From<StepKind> for StepWork {
    fn from(kind: StepKind) -> Self {
        match kind {
            StepKind::Full => Self::Computed,
            StepKind::References => Self::References,
            StepKind::Region => Self::Region,
            StepKind::Estimated => Self::Skipped,
        }
    }
}
