//! Weights: a cursor over named tensors, from files, from memory, or made from a seed.

mod adapters;
mod audit;
mod companions;
mod file;
mod gguf;
mod gguf_value;
mod gguf_write;
mod header;
mod names;
mod open;
mod packed;
mod quantize;
mod read;
mod report;
mod save;
mod save_streamed;
mod synthetic;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::cuda::Copies;
use crate::nn::Slots;
pub use crate::prefetch::BUFFERS as PREFETCH_BUFFERS;
use crate::prefetch::Prefetch;
use crate::{CheckpointError, Error, Result};
pub use adapters::Adapters;
use companions::Companion;
pub(crate) use companions::Factors;
use file::{Stored, WeightFile};
pub use gguf_value::{Array, Value};
pub use gguf_write::{StreamedTensor, write_gguf};
pub use names::{NameMap, Recipe, nearest as nearest_name};
pub use packed::LeftInFile;
pub use quantize::Quantize;
pub use report::Account;
pub use save::{save, to_bytes};
pub use save_streamed::save_streamed;

/// A cheap, cloneable cursor into a set of named tensors.
///
/// A part is built from it and asks for each of its tensors by name and shape; [`Weights::at`]
/// steps into a sub-module. All clones share one account of what was read, which
/// [`Weights::finish`] closes: a tensor that nothing asked for is an error.
///
/// # Example
/// ```
/// use kontext_core::{Tensor, Weights};
/// let weights = Weights::from_tensors([("head.bias".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))]);
/// let bias = weights.at("head").tensor("bias", &[2])?;
/// assert_eq!(bias.size(), [2]);
/// let error = weights.at("head").tensor("baas", &[2]).unwrap_err();
/// let cause = std::error::Error::source(&error).unwrap().to_string();
/// assert!(cause.starts_with("no tensor `head.baas` (nearest: `head.bias`)"));
/// weights.finish()?;
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Weights {
    store: Arc<Store>,
    prefix: String,
    kind: Conversion,
    device: Device,
    map: Option<NameMap>,
    adapters: Option<Arc<Mutex<Adapters>>>,
    slots: Option<Slots>,
    audit: bool,
    left: LeftInFile,
    quantize: Option<Quantize>,
    prefetch: Option<Arc<Prefetch<Copies>>>,
}

struct Store {
    path: PathBuf,
    source: Source,
    used: Mutex<BTreeSet<String>>,
    problems: Mutex<Vec<CheckpointError>>,
}

/// What happens to a tensor's kind when it is read.
#[derive(Clone, Copy)]
enum Conversion {
    Keep,
    To(Kind),
    AtMost(Kind),
}

enum Source {
    Files {
        files: Arc<Vec<WeightFile>>,
        entries: BTreeMap<String, Entry>,
    },
    Memory(Mutex<BTreeMap<String, Tensor>>),
    /// Made on demand; without a seed, blank.
    Synthetic {
        seed: Option<u64>,
        made: Mutex<BTreeMap<String, Vec<i64>>>,
    },
}

/// Where a tensor stands in the files, and what their headers say of it.
#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    /// Its name there.
    name: String,
    stored: Stored,
    companion: Companion,
    /// Bytes that its companions take.
    companion_bytes: u64,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("path", &self.store.path)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Weights {
    /// Tensors that are already in memory.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Self::over(
            PathBuf::from("memory"),
            Source::Memory(Mutex::new(tensors.into_iter().collect())),
        )
    }

    fn over(path: PathBuf, source: Source) -> Self {
        let store = Arc::new(Store {
            path,
            source,
            used: Mutex::default(),
            problems: Mutex::default(),
        });
        Self {
            store,
            prefix: String::new(),
            kind: Conversion::Keep,
            device: Device::Cpu,
            map: None,
            adapters: None,
            slots: None,
            audit: false,
            left: LeftInFile::None,
            quantize: None,
            prefetch: None,
        }
    }

    /// The cursor of the sub-module `name`.
    #[must_use]
    pub fn at(&self, name: impl AsRef<str>) -> Self {
        let prefix = if name.as_ref().is_empty() {
            self.prefix.clone()
        } else {
            format!("{}{}.", self.prefix, name.as_ref())
        };
        Self { prefix, ..self.clone() }
    }

    /// Tensors are converted to this kind when they are read. Default: kept as they are stored.
    #[must_use]
    pub fn kind(self, kind: Kind) -> Self {
        Self {
            kind: Conversion::To(kind),
            ..self
        }
    }

    /// Tensors that are stored narrower than this kind stay so, others are converted to it.
    ///
    /// The parts widen narrow weights layer by layer: a 12 B model in bf16 computes in f32 in half
    /// the memory that f32 weights would take.
    #[must_use]
    pub fn at_most(self, kind: Kind) -> Self {
        Self {
            kind: Conversion::AtMost(kind),
            ..self
        }
    }

    /// Tensors are put on this device. Default: the CPU.
    #[must_use]
    pub fn device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Names that parts ask for are translated by `map` into the file's names.
    #[must_use]
    pub fn named(self, map: NameMap) -> Self {
        Self { map: Some(map), ..self }
    }

    /// The file or folder that the tensors come from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.store.path
    }

    /// Whether the tensor `name` is there. Always true for synthetic weights.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        let full = format!("{}{name}", self.prefix);
        let recipe = self.map.map_or_else(|| Recipe::Name(full.clone()), |map| map(&full));
        match &self.store.source {
            Source::Files { entries, .. } => recipe.names().iter().all(|n| entries.contains_key(n)),
            Source::Memory(tensors) => recipe.names().iter().all(|n| lock(tensors).contains_key(n)),
            Source::Synthetic { .. } => true,
        }
    }

    /// The stored shape of a tensor by its name in the file, without reading it.
    #[must_use]
    pub fn shape_of(&self, name: &str) -> Option<Vec<i64>> {
        match &self.store.source {
            Source::Files { entries, .. } => entries.get(name).map(|e| e.stored.shape.clone()),
            Source::Memory(tensors) => lock(tensors).get(name).map(Tensor::size),
            Source::Synthetic { .. } => None,
        }
    }

    /// All names in the file, sorted; of synthetic weights, those made so far.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match &self.store.source {
            Source::Files { entries, .. } => entries.keys().cloned().collect(),
            Source::Memory(tensors) => lock(tensors).keys().cloned().collect(),
            Source::Synthetic { made, .. } => lock(made).keys().cloned().collect(),
        }
    }

    /// Marks every tensor for which `known` holds as accounted for: known extras of a format.
    pub fn ignore(&self, known: impl Fn(&str) -> bool) {
        let names = self.names();
        lock(&self.store.used).extend(names.into_iter().filter(|n| known(n)));
    }

    /// Closes the account.
    ///
    /// # Errors
    /// [`CheckpointError::Unused`] where there are tensors that no part asked for.
    pub fn finish(&self) -> Result<()> {
        let names = self.unused();
        if self.audit || names.is_empty() {
            Ok(())
        } else {
            Err(self.error(CheckpointError::Unused { names }))
        }
    }

    /// The names that no part has asked for yet.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        if matches!(self.store.source, Source::Synthetic { .. }) {
            return Vec::new();
        }
        let used = lock(&self.store.used);
        self.names().into_iter().filter(|n| !used.contains(n)).collect()
    }

    fn error(&self, source: CheckpointError) -> Error {
        Error::Checkpoint {
            path: self.store.path.clone(),
            source,
        }
    }
}

/// A poisoned lock holds a plain set of names, which stays valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn same_but_ones(a: &[i64], b: &[i64]) -> bool {
    let ones = |s: &[i64]| s.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    ones(a) == ones(b)
}
