//! Building a model without its weights, to collect all errors of a checkpoint at once.

use std::sync::{Arc, Mutex};

use kontext_core::{CheckpointError, Result, lock};
use kontext_formats::TensorMap;
use tch::{Kind, Tensor};

use super::{Weights, same_but_ones};

impl Weights {
    /// Returns the same weights in audit mode, to be checked instead of read.
    ///
    /// A model built from them gets zeros that take no memory; missing tensors and wrong shapes are recorded
    /// instead of failing, see [`Weights::problems`]. [`Weights::finish`] does not fail; see
    /// [`Weights::unused`].
    #[must_use]
    pub fn audited(&self) -> Self {
        Self {
            audit: Some(Arc::default()),
            ..self.clone()
        }
    }

    /// Returns the problems that an audit found, and clears them.
    #[must_use]
    pub fn problems(&self) -> Vec<CheckpointError> {
        self.audit
            .as_deref()
            .map(|problems| std::mem::take(&mut *lock(problems)))
            .unwrap_or_default()
    }

    /// Records any problem of a tensor and returns zeros.
    pub(super) fn check(
        &self,
        map: &TensorMap,
        shape: &[i64],
        problems: &Mutex<Vec<CheckpointError>>,
    ) -> Result<Tensor> {
        let mut rows = 0;
        let mut rest: Option<Vec<i64>> = None;
        for name in map.names() {
            let Some(stored) = self.shape_of(name) else {
                lock(problems).push(self.store.missing_tensor(name));
                return self.zeros(shape);
            };
            self.store.mark_used([name]);
            rows += stored.first().copied().unwrap_or(1);
            rest = Some(stored.get(1..).unwrap_or_default().to_vec());
        }
        let got = match map {
            TensorMap::Rows(_) => [&[rows][..], &rest.unwrap_or_default()].concat(),
            TensorMap::Name(name) | TensorMap::SwapHalves(name) => self.shape_of(name).unwrap_or_default(),
        };
        if !same_but_ones(&got, shape) {
            lock(problems).push(CheckpointError::Shape {
                name: map.names().join("` + `"),
                expected: shape.to_vec(),
                got,
            });
        }
        self.zeros(shape)
    }

    /// Zeros that share one element of memory.
    fn zeros(&self, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::f_zeros([1; 0], (Kind::Float, self.device))?.f_expand(shape, false)?)
    }
}
