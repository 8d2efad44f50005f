//! Placement of a model's parts: always in memory, or only while they run.

use std::fmt;
use std::ops::Deref;

use kontext_core::{Device, Error, Result};
use kontext_device::memory;
use kontext_nn::Offload;

use crate::frozen::Frozen;

/// Placement of a model's parts over the life of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Placement {
    /// The first of the others, in order, whose peak fits the device's free memory when the model is loaded
    /// (planned for a square edit of the model's size); the last if none fits. Resident if a device does not
    /// report its free memory.
    #[default]
    Auto,
    /// All parts stay in device memory: fastest for many runs. The modulation's weights, used once a run,
    /// stay in their file on a CPU, and on a CUDA device without enough memory for them.
    Resident,
    /// Each part is in memory only while it runs: the text encoders, then the transformer, then the
    /// autoencoder. Every run loads them again.
    Staged,
    /// Large weights are offloaded: they stay in their files and are read, layer by layer, for each
    /// multiplication. The system caches as much of the files as fits. On a CUDA device the transformer's
    /// next weight is prefetched through pinned memory while the current one is in use, from the second step
    /// on.
    Streamed,
}

impl Placement {
    /// All but [`Placement::Auto`], in the order that it tries them.
    pub const ALL: [Self; 3] = [Self::Resident, Self::Staged, Self::Streamed];

    /// Returns the arrangements of a placement on a device, from the fastest on; all of them for
    /// [`Placement::Auto`].
    ///
    /// The modulation's weights are a quarter of the transformer and are used once a run. A CPU reads them
    /// from the file's pages in any case. A CUDA device has to copy them (6.5 GB in bf16), so a resident
    /// model keeps them if they fit; a model loaded for each run copies them once either way.
    pub(crate) fn arrangements(self, device: Device) -> Vec<Arrangement> {
        let all = [
            (Self::Resident, Offload::None),
            (Self::Resident, Offload::Once),
            (Self::Staged, Offload::Once),
            (Self::Streamed, Offload::All),
        ];
        let wanted = |placement: Self| self == Self::Auto || self == placement;
        let there = |left: Offload| device != Device::Cpu || left != Offload::None;
        let all = all
            .into_iter()
            .filter(|(placement, left)| wanted(*placement) && there(*left));
        all.map(|(placement, left)| Arrangement { placement, left }).collect()
    }
}

/// A placement, and the weights offloaded to their files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrangement {
    pub(crate) placement: Placement,
    pub(crate) left: Offload,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Resident => "resident",
            Self::Staged => "staged",
            Self::Streamed => "streamed",
        })
    }
}

impl std::str::FromStr for Placement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Auto]
            .into_iter()
            .chain(Self::ALL)
            .find(|placement| placement.to_string() == text);
        all.ok_or_else(|| Error::invalid("placement", "auto, resident, staged or streamed", text))
    }
}

/// A part of a pipeline: held in memory, or loaded on demand.
pub(crate) enum Slot<T> {
    Held(Frozen<T>),
    OnDemand(Box<dyn Fn() -> Result<T> + Send + Sync>),
}

/// A part in use: shared, or loaded for the lease.
pub(crate) enum Lease<'a, T> {
    Shared(&'a T),
    Own(T),
}

impl<T> Slot<T> {
    pub(crate) fn held(value: T) -> Self {
        Self::Held(Frozen::new(value))
    }

    /// Creates a part with `load`: now, or at every use.
    pub(crate) fn new(on_demand: bool, load: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let load = move || {
            let part = load();
            memory::give_back();
            part
        };
        if on_demand {
            Ok(Self::OnDemand(Box::new(load)))
        } else {
            Ok(Self::held(load()?))
        }
    }

    /// Returns the part, if it is in memory.
    pub(crate) fn in_memory(&self) -> Option<&T> {
        match self {
            Self::Held(value) => Some(value),
            Self::OnDemand(_) => None,
        }
    }

    /// Leases the part, loading it if necessary.
    pub(crate) fn lease(&self) -> Result<Lease<'_, T>> {
        Ok(match self {
            Self::Held(value) => Lease::Shared(value),
            Self::OnDemand(load) => Lease::Own(load()?),
        })
    }
}

impl<'a, T> Lease<'a, T> {
    /// Returns the leased part, taking the lease at its first use.
    pub(crate) fn begin<'b>(lease: &'b mut Option<Self>, take: impl FnOnce() -> Result<Self>) -> Result<&'b T>
    where
        'a: 'b,
    {
        Ok(match lease {
            Some(lease) => lease,
            None => lease.insert(take()?),
        })
    }

    /// Drops the lease, then returns freed heap pages to the OS: the gaps of its activations, and of a part
    /// loaded for it, fit few of the next part's tensors.
    pub(crate) fn end(self) {
        drop(self);
        memory::give_back();
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Held(_)) {
            "in memory"
        } else {
            "loaded when it works"
        })
    }
}

impl<T> Deref for Lease<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Shared(value) => value,
            Self::Own(value) => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_part_on_demand_is_made_anew_for_each_lease_and_a_held_one_once() {
        for (on_demand, expected) in [(true, 2), (false, 1)] {
            let made = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&made);
            let slot = Slot::new(on_demand, move || Ok(count.fetch_add(1, Ordering::Relaxed))).unwrap();
            let _ = (*slot.lease().unwrap(), *slot.lease().unwrap());
            assert_eq!(made.load(Ordering::Relaxed), expected);
        }
    }

    #[test]
    fn placements_are_read_as_they_are_written() {
        for placement in Placement::ALL {
            assert_eq!(placement.to_string().parse::<Placement>().unwrap(), placement);
        }
        assert!(
            "gpu"
                .parse::<Placement>()
                .unwrap_err()
                .to_string()
                .contains("resident, staged or streamed")
        );
    }
}
