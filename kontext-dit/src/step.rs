//! The part of a step that all its blocks share.

use crate::Arithmetic;
use crate::rope::Rope;

/// A step of a run, as its blocks see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'a> {
    /// Rotations of the whole sequence.
    pub(crate) rope: &'a Rope,
    /// Number of the step, which picks its modulation from the tables.
    pub(crate) index: i64,
    /// Roundings of the run.
    pub(crate) arithmetic: Arithmetic,
}
