//! Prefetching of offloaded weights (left in their file) to a CUDA device.

mod copies;
mod ring;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tch::Tensor;

pub(crate) use self::copies::Copies;
use self::ring::Ring;
pub(crate) use self::ring::{Mover, Source};
use kontext_core::{Result, lock};
use kontext_formats::StoredMatrix;

use crate::dequant;
use crate::dequant::OnDevice;

/// Number of buffers: one is read while the next is filled.
pub const BUFFERS: usize = 2;

/// Shared host-to-device prefetcher for one model's offloaded weights, used by all clones of the model. It
/// takes no memory until the first request.
pub(crate) struct Prefetch<M: Mover> {
    /// Size of the largest matrix so far, in bytes.
    largest: AtomicUsize,
    /// The announced matrices, if they are requested in that order; empty after the first request.
    announced: Option<Mutex<Vec<Arc<StoredMatrix>>>>,
    /// Capacity of the buffers in bytes, and their ring.
    ring: OnceLock<(usize, Ring<StoredMatrix, M>)>,
    make: Arc<dyn Fn(usize) -> Result<M> + Send + Sync>,
}

impl Source for StoredMatrix {
    fn bytes(&self) -> &[u8] {
        self.bytes()
    }
}

impl<M: Mover> Prefetch<M> {
    /// Creates a prefetcher; `make` is called on the ring's own thread and returns a mover whose buffers hold
    /// the given number of bytes.
    pub(crate) fn new(make: impl Fn(usize) -> Result<M> + Send + Sync + 'static) -> Self {
        Self {
            largest: AtomicUsize::new(0),
            announced: None,
            ring: OnceLock::new(),
            make: Arc::new(make),
        }
    }

    /// Expects the first requests in the order of the announcements, instead of learning the order from them.
    pub(crate) fn in_order(self) -> Self {
        Self {
            announced: Some(Mutex::default()),
            ..self
        }
    }

    /// Announces a matrix that will be requested.
    pub(crate) fn expect(&self, matrix: &Arc<StoredMatrix>) {
        self.largest.fetch_max(matrix.bytes().len(), Ordering::Relaxed);
        if let Some(announced) = &self.announced {
            lock(announced).push(Arc::clone(matrix));
        }
    }

    /// Unpacks a matrix on the host as [`dequant::unpack_to`] does, bit for bit; falls back to it if the
    /// ring cannot serve.
    pub(crate) fn unpack_to(
        &self,
        matrix: &Arc<StoredMatrix>,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &Tensor,
    ) -> Result<()> {
        let start = || {
            let (capacity, make) = (self.largest.load(Ordering::Relaxed), Arc::clone(&self.make));
            let order = self
                .announced
                .as_ref()
                .map(|announced| std::mem::take(&mut *lock(announced)));
            let order = order.unwrap_or_default();
            (capacity, Ring::new(move || make(capacity), &order))
        };
        let (capacity, ring) = self.ring.get_or_init(start);
        let packed = matrix.view()?;
        let served = if matrix.bytes().len() <= *capacity {
            let unpack = |bytes: &Tensor| OnDevice::over(&packed, bytes)?.unpack_to(rows.clone(), columns.clone(), out);
            ring.with(matrix, unpack)
        } else {
            None
        };
        served.unwrap_or_else(|| dequant::unpack_to(&packed, rows, columns, out))
    }
}

impl<M: Mover> std::fmt::Debug for Prefetch<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefetch")
            .field("largest", &self.largest)
            .finish_non_exhaustive()
    }
}
