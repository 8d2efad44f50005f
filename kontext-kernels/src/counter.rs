//! An account of launches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kontext_core::{Device, Result, lock};

use crate::{Access, Call, Kernel, Launch};

/// Launches of a kernel and the bytes of their buffers, each counted once a launch: the least that memory
/// must move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Launches.
    pub launches: u64,
    /// Bytes of the buffers that are read.
    pub read: u64,
    /// Bytes of the buffers that are written.
    pub written: u64,
}

/// A target that counts launches and passes them on.
#[derive(Debug)]
pub struct Counter {
    target: Arc<dyn Launch>,
    counts: Mutex<BTreeMap<Kernel, Count>>,
}

impl Counter {
    /// Makes a counter of launches by `target`.
    #[must_use]
    pub fn new(target: Arc<dyn Launch>) -> Self {
        Self {
            target,
            counts: Mutex::default(),
        }
    }

    /// Returns the counts since the last call, and begins at zero.
    pub fn take(&self) -> BTreeMap<Kernel, Count> {
        std::mem::take(&mut *lock(&self.counts))
    }
}

impl Launch for Counter {
    fn device(&self) -> Device {
        self.target.device()
    }

    fn has_fp8(&self) -> bool {
        self.target.has_fp8()
    }

    fn launch(&self, call: Call<'_>) -> Result<()> {
        let bytes = |not: Access| -> u64 {
            let used = call.buffers().iter().filter(|buffer| buffer.access != not);
            used.map(|buffer| buffer.size() as u64).sum()
        };
        {
            let mut counts = lock(&self.counts);
            let count = counts.entry(call.kernel()).or_default();
            count.launches += 1;
            count.read += bytes(Access::Write);
            count.written += bytes(Access::Read);
        }
        self.target.launch(call)
    }
}
