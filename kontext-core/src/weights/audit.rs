//! Building a model without its weights, to learn all that is wrong with a checkpoint at once.

use std::sync::PoisonError;

use tch::Tensor;

use super::{Recipe, Weights, lock, names, same_but_ones, synthetic};
use crate::{CheckpointError, Result};

impl Weights {
    /// The same weights, to be checked instead of read.
    ///
    /// A model built from them gets zeros that take no memory; tensors that are missing or of
    /// another shape are noted instead of failing, see [`Weights::problems`]. [`Weights::finish`]
    /// does not fail; see [`Weights::unused`].
    #[must_use]
    pub fn audited(&self) -> Self {
        Self {
            audit: true,
            ..self.clone()
        }
    }

    /// What an audit found, and clears it.
    #[must_use]
    pub fn problems(&self) -> Vec<CheckpointError> {
        std::mem::take(&mut self.store.problems.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes what is wrong with a tensor, and answers with zeros.
    pub(super) fn audit(&self, recipe: &Recipe, shape: &[i64]) -> Result<Tensor> {
        let mut rows = 0;
        let mut rest: Option<Vec<i64>> = None;
        for name in recipe.names() {
            let Some(stored) = self.shape_of(name) else {
                let all = self.names();
                let nearest = names::nearest(name, all.iter().map(String::as_str));
                lock(&self.store.problems).push(CheckpointError::Missing {
                    name: name.clone(),
                    nearest,
                });
                return synthetic::tensor(name, shape, None, self.device);
            };
            lock(&self.store.used).insert(name.clone());
            rows += stored.first().copied().unwrap_or(1);
            rest = Some(stored.get(1..).unwrap_or_default().to_vec());
        }
        let got = match recipe {
            Recipe::Rows(_) => [&[rows][..], &rest.unwrap_or_default()].concat(),
            Recipe::Name(name) | Recipe::SwapHalves(name) => self.shape_of(name).unwrap_or_default(),
        };
        if !same_but_ones(&got, shape) {
            let name = recipe.names().join("` + `");
            lock(&self.store.problems).push(CheckpointError::Shape {
                name,
                expected: shape.to_vec(),
                got,
            });
        }
        synthetic::tensor("", shape, None, self.device)
    }
}
