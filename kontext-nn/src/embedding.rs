//! Embedding tables.

use kontext_core::Result;
use tch::{Kind, Tensor};

use super::matrix::Matrix;
use crate::Weights;

/// A table of vectors, looked up by index. A packed table stays packed: only the requested rows are unpacked.
#[derive(Debug)]
pub struct Embedding {
    weight: Matrix,
}

impl Embedding {
    /// Reads `weight` [count, width].
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn new(w: &Weights, count: i64, width: i64) -> Result<Self> {
        Ok(Self {
            // Only its rows are read: as a whole it would need the largest of all buffers.
            weight: w.clone().not_prefetched().matrix("weight", [count, width])?,
        })
    }

    /// Looks up indices [..] (i64) and returns vectors [.., width] of the given dtype.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if an index is outside the table.
    pub fn forward(&self, indices: &Tensor, kind: Kind) -> Result<Tensor> {
        self.weight.gather(indices, kind)
    }
}
