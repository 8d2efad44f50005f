//! Weights that are only read, shared between threads.

use std::ops::Deref;

/// A model whose tensors are never written after it is built.
///
/// tch's `Tensor` is `Send` but not `Sync`, because its in-place methods take a shared handle to
/// memory. libtorch itself allows any number of threads to read a tensor at once.
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

// SAFETY: the value is reachable by shared reference alone, and what is in it (`TextEncoder`, `Dit`,
// `Autoencoder`, `LoraSet`) has no method that writes to a tensor: their operations make new ones, and
// reference counts of tensors are atomic. The changes of layers lie behind mutexes and are replaced
// whole. A test compares parallel runs with serial ones.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Frozen<T> {}
