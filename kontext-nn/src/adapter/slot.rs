//! The adapter slot of one linear layer.

use std::sync::{Arc, Mutex};

use kontext_core::{Result, lock};
use tch::Kind;

use super::device_adapter::DeviceAdapter;
use super::linear_adapter::LinearAdapter;
use crate::matrix::Matrix;

/// One layer's adapters. All clones are the same slot.
#[derive(Clone)]
pub(crate) struct AdapterSlot(Arc<Mutex<Content>>);

/// State of a slot. In a `Mutex`, because tensors are `Send` but not `Sync`: readers take shallow copies.
struct Content {
    /// The layer's weight [out, in], which shares its memory with the layer.
    weight: Matrix,
    adapters: Vec<DeviceAdapter>,
}

impl AdapterSlot {
    /// Creates the slot of a layer with this weight, without adapters.
    pub(super) fn new(weight: &Matrix) -> Self {
        Self(Arc::new(Mutex::new(Content {
            weight: weight.shallow_clone(),
            adapters: Vec::new(),
        })))
    }

    /// Returns a number that no other slot has as long as a clone of this one exists.
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Returns the size of the layer's weight, [out, in].
    pub(super) fn size(&self) -> [i64; 2] {
        lock(&self.0).weight.size()
    }

    /// Checks that the adapters fit the layer.
    pub(super) fn check(&self, adapters: &[LinearAdapter]) -> Result<()> {
        let size = self.size();
        adapters.iter().try_for_each(|adapter| adapter.fits(&size))
    }

    /// Moves adapters to the layer's device. The weight's lock is not held meanwhile, so that other threads
    /// can run the layer while norms are computed.
    pub(super) fn place(&self, adapters: &[LinearAdapter]) -> Result<Vec<DeviceAdapter>> {
        let weight = lock(&self.0).weight.shallow_clone();
        let place = |adapter: &LinearAdapter| adapter.place(weight.device(), || weight.dense(Kind::Float));
        adapters.iter().map(place).collect()
    }

    /// Replaces the adapters.
    pub(super) fn set(&self, adapters: Vec<DeviceAdapter>) {
        lock(&self.0).adapters = adapters;
    }

    /// Returns shallow copies of the adapters.
    pub(super) fn get(&self) -> Vec<DeviceAdapter> {
        copies(&lock(&self.0).adapters)
    }
}

impl std::fmt::Debug for AdapterSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterSlot")
            .field("adapters", &lock(&self.0).adapters.len())
            .finish_non_exhaustive()
    }
}

/// Returns shallow copies.
pub(super) fn copies(adapters: &[DeviceAdapter]) -> Vec<DeviceAdapter> {
    adapters.iter().map(DeviceAdapter::shallow_clone).collect()
}
