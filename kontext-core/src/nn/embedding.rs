//! Embedding tables.

use tch::{Kind, Tensor};

use crate::{Result, Weights};

/// A table of vectors, looked up by index.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// Reads `weight` [count, width].
    ///
    /// # Errors
    /// Those of [`Weights::tensor`].
    pub fn new(w: &Weights, count: i64, width: i64) -> Result<Self> {
        Ok(Self { weight: w.tensor("weight", &[count, width])? })
    }

    /// Indices [..] (i64) to vectors [.., width] of the given kind.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] where an index is outside the table.
    pub fn forward(&self, indices: &Tensor, kind: Kind) -> Result<Tensor> {
        Ok(Tensor::f_embedding(&self.weight, indices, -1, false, false)?.f_to_kind(kind)?)
    }
}
