//! Batches of encoded items that share their image sizes.

use kontext_core::{Conditioning, Tensor, Tokens};
use kontext_sampler::Grid;

/// The image sizes shared by the items of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Token grid of the target.
    pub target: Grid,
    /// Token grid of each reference image.
    pub references: Vec<Grid>,
}

/// A batch of encoded items.
#[derive(Debug)]
pub struct Batch {
    /// Indices of the items in the dataset.
    pub items: Vec<usize>,
    /// The shared image sizes.
    pub bucket: Bucket,
    /// Target tokens [B, L, 4 C].
    pub target: Tensor,
    /// Positions of the target tokens [L, 3].
    pub target_ids: Tensor,
    /// Reference tokens [B, R, 4 C] with their positions; `None` without references.
    pub context: Option<Tokens>,
    /// Encoded instructions, B of them.
    pub conditioning: Conditioning,
}
