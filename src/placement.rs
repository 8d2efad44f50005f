//! Placement of a model's parts: always in memory, or only while they run.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use kontext_core::{Device, Error, Result, lock};
use kontext_device::memory;
use kontext_nn::Offload;

use crate::frozen::Frozen;

/// Placement of a model's parts over the life of a pipeline.
///
/// Weights that are not copied to memory are read through a map of their file: with [`Placement::Streamed`]
/// the large ones, on a CPU with every placement the modulation's, and with [`Placement::Staged`] a part is
/// read for each run. A file of weights must not be changed in place while the pipeline exists. If it is
/// truncated (`cp new old`, `curl -o old`), the system ends the program with SIGBUS, which no error can
/// report; if it is overwritten, results change without an error. To replace it, write a new file, rename
/// that to the old name, and load the model again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
#[doc(alias = "cpu_offload")]
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
    /// multiplication. The system caches as much of the files as fits. On a CUDA device the next weight is
    /// prefetched through pinned memory while the current one is in use: of T5 always, of the transformer from the
    /// second step on.
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

/// A part of a pipeline.
pub(crate) enum Slot<T> {
    /// Given by the caller, and always in memory.
    Given(Frozen<T>),
    /// Loaded with the pipeline, and again at the first use after it was unloaded.
    Kept {
        part: Mutex<Option<Arc<Frozen<T>>>>,
        load: Loader<T>,
    },
    /// Loaded for each use.
    OnDemand(Loader<T>),
}

/// Loads a part from its files.
type Loader<T> = Box<dyn Fn() -> Result<T> + Send + Sync>;

/// A part in use: shared, or loaded for the lease.
pub(crate) enum Lease<'a, T> {
    Given(&'a T),
    Shared(Arc<Frozen<T>>),
    Own(T),
}

impl<T: 'static> Slot<T> {
    pub(crate) fn given(value: T) -> Self {
        Self::Given(Frozen::new(value))
    }

    /// Creates a part with `load`: now, or at every use.
    pub(crate) fn new(on_demand: bool, load: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let load: Loader<T> = Box::new(move || {
            let part = load();
            memory::give_back();
            part
        });
        if on_demand {
            Ok(Self::OnDemand(load))
        } else {
            Ok(Self::kept(load()?, load))
        }
    }

    /// Creates a part in memory; `load` loads it again after it was unloaded.
    pub(crate) fn kept(part: T, load: impl Fn() -> Result<T> + Send + Sync + 'static) -> Self {
        Self::Kept {
            part: Mutex::new(Some(Arc::new(Frozen::new(part)))),
            load: Box::new(load),
        }
    }

    /// Returns the part, if it is in memory.
    pub(crate) fn in_memory(&self) -> Option<Lease<'_, T>> {
        match self {
            Self::Given(value) => Some(Lease::Given(value)),
            Self::Kept { part, .. } => lock(part).clone().map(Lease::Shared),
            Self::OnDemand(_) => None,
        }
    }

    /// Leases the part, loading it if necessary.
    pub(crate) fn lease(&self) -> Result<Lease<'_, T>> {
        Ok(match self {
            Self::Given(value) => Lease::Given(value),
            Self::Kept { part, load } => {
                // Runs that start together wait for one load.
                let mut part = lock(part);
                Lease::Shared(Arc::clone(match &mut *part {
                    Some(part) => part,
                    part => part.insert(Arc::new(Frozen::new(load()?))),
                }))
            }
            Self::OnDemand(load) => Lease::Own(load()?),
        })
    }

    /// Drops the part, which is loaded again at the next use; running leases keep theirs. Does nothing to a
    /// given part.
    pub(crate) fn unload(&self) {
        if let Self::Kept { part, .. } = self {
            let part = lock(part).take();
            drop(part);
        }
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
        f.write_str(match self {
            Self::Given(_) => "in memory",
            Self::Kept { .. } => "in memory until it is unloaded",
            Self::OnDemand(_) => "in memory while it is used",
        })
    }
}

impl<T> Deref for Lease<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Given(value) => value,
            Self::Shared(value) => value,
            Self::Own(value) => value,
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn an_unloaded_part_is_made_once_more_and_a_load_that_fails_leaves_none() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let load = move || match count.fetch_add(1, Ordering::Relaxed) {
            1 => Err(Error::invalid("part", "none", 1)),
            number => Ok(Arc::new(number)),
        };
        let slot = Slot::new(false, load).unwrap();
        let lease = slot.lease().unwrap();
        let part = Arc::downgrade(&lease);
        slot.unload();
        assert!(slot.in_memory().is_none());
        // The running lease keeps its part, and is the last to do so.
        assert_eq!((**lease, part.strong_count()), (0, 1));
        drop(lease);
        assert_eq!(part.strong_count(), 0);
        assert!(slot.lease().is_err() && slot.in_memory().is_none());
        for _ in 0..2 {
            assert_eq!(**slot.lease().unwrap(), 2);
        }
        assert_eq!(made.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_panic_while_a_part_is_loaded_leaves_its_slot_usable() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let load = move || {
            assert_ne!(count.fetch_add(1, Ordering::Relaxed), 1, "the second load");
            Ok(7)
        };
        let slot = Slot::new(false, load).unwrap();
        slot.unload();
        let lease = || slot.lease().map(|part| *part).unwrap();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(lease)).is_err());
        assert_eq!(lease(), 7);
    }

    #[test]
    fn a_given_part_stays() {
        let slot = Slot::given(7);
        slot.unload();
        assert_eq!(slot.in_memory().map(|part| *part), Some(7));
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
