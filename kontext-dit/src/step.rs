//! The part of a step that all its blocks share.

use crate::Arithmetic;
use crate::kept::BlockKv;
use crate::rope::Rope;

/// A step of a run, as its blocks see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'a> {
    /// Rotations of the tokens that the step computes.
    pub(crate) rope: &'a Rope,
    /// Number of the step, which picks its modulation from the tables.
    pub(crate) index: i64,
    /// Roundings of the run.
    pub(crate) arithmetic: Arithmetic,
    /// Keys and values of the block that are kept or read, next to those of the step's tokens.
    pub(crate) kv: BlockKv<'a>,
}
