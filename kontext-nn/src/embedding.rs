//! Embedding tables.

use tch::{Kind, Tensor};

use super::matrix::Matrix;
use crate::Weights;
use kontext_core::Result;

/// A table of vectors, looked up by index. A packed one stays so: only the rows that are asked for are unpacked.
#[derive(Debug)]
pub struct Embedding {
    weight: Matrix,
}

impl Embedding {
    /// Reads `weight` [count, width].
    ///
    /// # Errors
    /// Those of [`Weights::tensor`].
    pub fn new(w: &Weights, count: i64, width: i64) -> Result<Self> {
        Ok(Self {
            weight: w.matrix("weight", [count, width])?,
        })
    }

    /// Indices [..] (i64) to vectors [.., width] of the given kind.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] where an index is outside the table.
    pub fn forward(&self, indices: &Tensor, kind: Kind) -> Result<Tensor> {
        self.weight.gather(indices, kind)
    }
}
