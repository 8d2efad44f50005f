//! Tokens of a step.

use serde::{Deserialize, Serialize};

/// Tokens that a step of a run with [`ReferenceReuse`](crate::ReferenceReuse) computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StepKind {
    /// Text, target and references.
    Full,
    /// Text and target; the references' keys and values are those of the last full step.
    References,
    /// Text and the edited tokens of the target; the others' keys and values, and the velocity of the unedited tokens,
    /// are those of the last full step.
    Region,
    /// None: the edited tokens' velocity is that of the last computed step times a published ratio, the unedited ones' that of
    /// the last full step.
    Estimated,
}
