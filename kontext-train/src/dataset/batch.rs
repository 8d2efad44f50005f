//! Items of one bucket as tensors.

use kontext_core::{Conditioning, Tensor, Tokens};
use kontext_sampler::Grid;

/// The sizes that the items of a batch share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The target's grid of tokens.
    pub target: Grid,
    /// The grid of each reference picture.
    pub references: Vec<Grid>,
}

/// A batch of items, encoded.
#[derive(Debug)]
pub struct Batch {
    /// Indices of the items in the dataset.
    pub items: Vec<usize>,
    /// The sizes that they share.
    pub bucket: Bucket,
    /// The targets' tokens [B, L, 4 C].
    pub target: Tensor,
    /// Positions of the target's tokens [L, 3].
    pub target_ids: Tensor,
    /// The reference pictures' tokens [B, R, 4 C] with their positions, if there are any.
    pub context: Option<Tokens>,
    /// The instructions; B of them.
    pub conditioning: Conditioning,
}
