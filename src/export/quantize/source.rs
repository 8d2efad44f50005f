//! The weights that are quantised, read until a switch cancels it.

use std::cell::Cell;

use kontext_core::{Error, Kind, Result, Tensor};
use kontext_nn::Weights;

use crate::Cancel;

/// Weights, and the count of the tensors that are read.
#[derive(Debug)]
pub(super) struct Source<'a> {
    weights: Weights,
    cancel: &'a Cancel,
    done: Cell<usize>,
    total: Cell<usize>,
}

impl<'a> Source<'a> {
    pub(super) fn new(weights: Weights, cancel: &'a Cancel) -> Self {
        Self {
            weights,
            cancel,
            done: Cell::new(0),
            total: Cell::new(0),
        }
    }

    /// Returns the weights.
    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Sets the number of tensors that will be read, some of them twice.
    pub(super) fn expect(&self, total: usize) {
        self.total.set(total);
    }

    /// Reads a tensor in f32.
    pub(super) fn read(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let (done, total) = (self.done.get(), self.total.get());
        if self.cancel.check().is_break() {
            return Err(Error::Cancelled { done, total });
        }
        self.done.set(done + 1);
        self.weights.clone().kind(Kind::Float).tensor(name, shape)
    }
}
