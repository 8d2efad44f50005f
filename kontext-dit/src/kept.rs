//! Keys and values that a full step keeps for later steps, which then compute fewer tokens.
//!
//! Source: RegionE, Peyton-Chen/RegionE@974da98 `src/FluxKontext/inplace.py`, `RegoionEFluxAttnProcessor2_0`,
//! which keeps projections before their norm and rotation; kept after them they are the same values.

use kontext_core::{Device, Error, Kind, Result, Tensor};
use kontext_nn::ops::attend_tokens;

use crate::DitConfig;

/// Tokens whose keys and values a full step keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeptTokens {
    /// The references': later steps compute text and target.
    References,
    /// The target's and the references': later steps compute text and some rows of the target.
    Image,
}

/// Numbers of tokens of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) text: i64,
    pub(crate) target: i64,
    pub(crate) references: i64,
}

impl Sizes {
    /// Returns the first of the kept tokens in the sequence, and their number.
    fn kept(self, tokens: KeptTokens) -> [i64; 2] {
        let Self {
            text,
            target,
            references,
        } = self;
        match tokens {
            KeptTokens::References => [text + target, references],
            KeptTokens::Image => [text, target + references],
        }
    }
}

/// Keys and values of some tokens in each block, after their norm and rotation: the store that full steps
/// write and reduced steps read.
///
/// # Example
/// ```
/// use kontext_core::Kind;
/// use kontext_dit::{DitConfig, KeptKv};
/// // One reference of 1024x1024 in bf16.
/// assert_eq!(KeptKv::bytes(&DitConfig::kontext_dev(), Kind::BFloat16, 4096, 1), 2_868_903_936);
/// ```
#[derive(Debug)]
pub struct KeptKv {
    /// [N, S, 2, H, D/H] for each block: keys, then values.
    blocks: Vec<Tensor>,
    tokens: KeptTokens,
    /// First kept token of the sequence.
    start: i64,
    filled: bool,
}

impl KeptKv {
    /// Allocates room for tokens of runs of these sizes, for samples of the batch size `batch` (N).
    pub(crate) fn allocate(
        config: &DitConfig,
        sizes: Sizes,
        batch: i64,
        tokens: KeptTokens,
        options: (Kind, Device),
    ) -> Result<Self> {
        let [start, count] = sizes.kept(tokens);
        let shape = [batch, count, 2, config.heads, config.head_dim];
        let blocks = (0..config.double_blocks + config.single_blocks)
            .map(|_| Ok(Tensor::f_empty(shape, options)?))
            .collect::<Result<_>>()?;
        Ok(Self {
            blocks,
            tokens,
            start,
            filled: false,
        })
    }

    /// Returns the bytes of a store: `tokens` kept tokens of `batch` samples in all blocks.
    #[must_use]
    pub fn bytes(config: &DitConfig, kind: Kind, tokens: u64, batch: u64) -> u64 {
        let blocks = config.double_blocks.saturating_add(config.single_blocks);
        let element = kind.elt_size_in_bytes() as u64;
        [2 * element, config.width().unsigned_abs(), blocks.unsigned_abs(), batch]
            .into_iter()
            .fold(tokens, u64::saturating_mul)
    }

    /// Returns the kept tokens.
    #[must_use]
    pub fn tokens(&self) -> KeptTokens {
        self.tokens
    }

    /// Returns `true` if a full step has written the store.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.filled
    }

    /// Notes that a step is about to write the store, or that it has.
    pub(crate) fn set_filled(&mut self, filled: bool) {
        self.filled = filled;
    }

    /// Checks that the store is one of runs of these sizes, for samples of a batch size.
    pub(crate) fn check(&self, sizes: Sizes, batch: i64) -> Result<()> {
        let [start, count] = sizes.kept(self.tokens);
        let first = self.blocks.first();
        let kept = first.map_or([0, 0], |block| [block.size()[0], block.size()[1]]);
        if kept == [batch, count] && self.start == start {
            return Ok(());
        }
        Err(Error::invalid(
            "kept keys and values",
            format!("those of {count} tokens from token {start} on, of {batch} samples, as the run has"),
            format!(
                "{} tokens from token {} on, of {} samples",
                kept[1], self.start, kept[0]
            ),
        ))
    }

    /// Checks that a full step has written the store.
    pub(crate) fn check_filled(&self) -> Result<()> {
        if self.filled {
            return Ok(());
        }
        Err(Error::invalid(
            "kept keys and values",
            "those of a full step of the run, computed before",
            "none",
        ))
    }

    /// Returns the keys and values of a block for a step that writes them.
    pub(crate) fn written(&self, block: usize) -> Result<BlockKv<'_>> {
        let (store, start) = (self.block(block)?, self.start);
        Ok(BlockKv::Keep { store, start })
    }

    /// Returns the keys and values of a block for a step that reads some of them.
    pub(crate) fn read<'a>(&'a self, block: usize, absent: Absent<'a>) -> Result<BlockKv<'a>> {
        let store = self.block(block)?;
        Ok(BlockKv::Read { store, absent })
    }

    fn block(&self, index: usize) -> Result<&Tensor> {
        self.blocks
            .get(index)
            .ok_or_else(|| Error::bug(format!("keys and values of block {index}")))
    }
}

/// Kept tokens that a step does not compute.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Absent<'a> {
    /// The last `count` rows of the store.
    Last { count: i64 },
    /// Rows of the store, [A].
    Rows(&'a Tensor),
}

impl Absent<'_> {
    fn count(self) -> i64 {
        match self {
            Self::Last { count } => count,
            Self::Rows(rows) => rows.size().first().copied().unwrap_or_default(),
        }
    }

    /// Returns the rows of a store.
    fn of(self, store: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Last { count } => store.f_narrow(1, store.size()[1] - count, count)?,
            Self::Rows(rows) => store.f_index_select(1, rows)?,
        })
    }
}

/// Keys and values of a block next to those of the tokens that a step computes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BlockKv<'a> {
    /// None: the step computes all tokens, and keeps nothing.
    Own,
    /// The step computes all tokens, and keeps those from `start` on.
    Keep { store: &'a Tensor, start: i64 },
    /// The step reads those of tokens that it does not compute.
    Read { store: &'a Tensor, absent: Absent<'a> },
}

impl BlockKv<'_> {
    /// Computes attention over the computed tokens and those that are absent.
    ///
    /// Shapes: `q` [B, Q, H, D/H], `k` and `v` [B, P, H, D/H] of the computed tokens; returns [B, Q, D].
    pub(crate) fn attend(self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own => attend_tokens(q, k, v),
            Self::Keep { store, start } => {
                let count = store.size()[1];
                for (index, x) in [k, v].into_iter().enumerate() {
                    store
                        .f_select(2, index as i64)?
                        .f_copy_(&x.f_narrow(1, start, count)?.f_detach()?)?;
                }
                attend_tokens(q, k, v)
            }
            Self::Read { store, absent } => {
                let kept = absent.of(store)?;
                let join = |own: &Tensor, index| Tensor::f_cat(&[own, &kept.f_select(2, index)?], 1);
                attend_tokens(q, &join(k, 0)?, &join(v, 1)?)
            }
        }
    }

    /// Returns the number of tokens whose keys and values follow those of the computed ones.
    pub(crate) fn absent(self) -> i64 {
        match self {
            Self::Own | Self::Keep { .. } => 0,
            Self::Read { absent, .. } => absent.count(),
        }
    }

    /// Computes attention as [`BlockKv::attend`], for queries, keys and values of one tensor `joint` [B, P +
    /// A, 3 D]. Its last A rows, for the absent tokens, are written here; the queries are those of `count`
    /// tokens from `first` on.
    pub(crate) fn attend_joint(self, joint: &Tensor, heads: i64, first: i64, count: i64) -> Result<Tensor> {
        let qkv = joint.f_unflatten(-1, [3, heads, -1])?;
        match self {
            Self::Own => {}
            Self::Keep { store, start } => {
                let kept = qkv.f_narrow(1, start, store.size()[1])?.f_narrow(2, 1, 2)?;
                store.shallow_clone().f_copy_(&kept)?;
            }
            Self::Read { store, absent } => {
                let count = absent.count();
                qkv.f_narrow(1, qkv.size()[1] - count, count)?
                    .f_narrow(2, 1, 2)?
                    .f_copy_(&absent.of(store)?)?;
            }
        }
        let mut q = qkv.f_select(2, 0)?;
        if count != q.size()[1] {
            q = q.f_narrow(1, first, count)?;
        }
        attend_tokens(&q, &qkv.f_select(2, 1)?, &qkv.f_select(2, 2)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counted_bytes_are_those_of_the_tensors() {
        let config = DitConfig {
            heads: 2,
            head_dim: 32,
            axes_dim: [4, 14, 14],
            double_blocks: 2,
            single_blocks: 3,
            ..DitConfig::kontext_dev()
        };
        let sizes = Sizes {
            text: 5,
            target: 12,
            references: 6,
        };
        for (tokens, count) in [(KeptTokens::References, 6), (KeptTokens::Image, 18)] {
            for kind in [Kind::Float, Kind::BFloat16] {
                let kept = KeptKv::allocate(&config, sizes, 2, tokens, (kind, Device::Cpu)).unwrap();
                let bytes = |block: &Tensor| (block.numel() * block.kind().elt_size_in_bytes()) as u64;
                let held: u64 = kept.blocks.iter().map(bytes).sum();
                assert_eq!(KeptKv::bytes(&config, kind, count, 2), held, "{tokens:?}, {kind:?}");
            }
        }
    }
}
