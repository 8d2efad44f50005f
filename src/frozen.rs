//! Read-only weights, shared between threads.

use std::ops::Deref;

/// A model whose tensors are never written after construction.
///
/// tch's `Tensor` is `Send` but not `Sync`, because its in-place methods take a shared handle to memory.
/// libtorch itself allows any number of threads to read a tensor at once.
#[derive(Debug)]
pub(crate) struct Frozen<T>(T);

impl<T> Frozen<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for Frozen<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

// SAFETY: the value is only reachable by shared reference, and its types (`TextEncoder`, `Dit`,
// `Autoencoder`, `OpenLora`) have no method that writes to a tensor: their operations create new ones, and
// reference counts of tensors are atomic. A weight's copy in another dtype is published whole, by a `OnceLock`.
// The adapters of layers are guarded by mutexes and replaced whole. A test compares parallel runs with serial
// ones.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Frozen<T> {}
