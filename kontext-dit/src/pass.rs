//! The tokens that a step computes.

use kontext_core::{Result, Tensor};

use crate::Run;
use crate::kept::{Absent, BlockKv, KeptKv};
use crate::rope::Rope;

/// Tokens that a step computes, and the origin of the other keys and values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass<'a> {
    /// Rotations of the computed tokens.
    pub(crate) rope: &'a Rope,
    /// Number of target tokens that are computed.
    pub(crate) target: i64,
    /// Reference tokens [1 or B, R, D], if they are computed.
    pub(crate) context: Option<&'a Tensor>,
    kept: Kept<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Kept<'a> {
    Nothing,
    Written(&'a KeptKv),
    Read(&'a KeptKv, Absent<'a>),
}

impl<'a> Pass<'a> {
    /// Computes all tokens.
    pub(crate) fn whole(run: &'a Run) -> Self {
        Self {
            rope: &run.rope,
            target: run.target,
            context: run.context.as_ref(),
            kept: Kept::Nothing,
        }
    }

    /// Computes all tokens, and keeps keys and values of some.
    pub(crate) fn keeping(run: &'a Run, kept: &'a KeptKv) -> Self {
        Self {
            kept: Kept::Written(kept),
            ..Self::whole(run)
        }
    }

    /// Computes the text and `target` rows of the target, whose rotations are `rope`.
    pub(crate) fn reduced(rope: &'a Rope, target: i64, kept: &'a KeptKv, absent: Absent<'a>) -> Self {
        Self {
            rope,
            target,
            context: None,
            kept: Kept::Read(kept, absent),
        }
    }

    /// Returns the keys and values of a block, counted from the first double block.
    pub(crate) fn block(&self, index: usize) -> Result<BlockKv<'a>> {
        match self.kept {
            Kept::Nothing => Ok(BlockKv::Own),
            Kept::Written(kept) => kept.written(index),
            Kept::Read(kept, absent) => kept.read(index, absent),
        }
    }
}
