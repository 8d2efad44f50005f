//! Weights: a cursor over named tensors, from which the layers of a model are built.

mod audit;
mod options;
mod packed;
mod read;
mod store;

use std::path::Path;
use std::sync::{Arc, Mutex};

use tch::{Device, Kind, Tensor};

use kontext_core::{CheckpointError, Result};
use kontext_formats::{NameMap, Store, TensorMap};
use options::LinearOptions;
pub use options::Offload;

/// A cheap, cloneable cursor into a set of named tensors.
///
/// A part is built from it and asks for each of its tensors by name and shape; [`Weights::at`] steps into a sub-module.
/// All clones share one account of the tensors that were read, which [`Weights::finish`] closes: a tensor that no part
/// asked for is an error.
///
/// # Example
/// ```
/// use kontext_core::Tensor;
/// use kontext_nn::Weights;
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
    names: Option<NameMap>,
    linear: LinearOptions,
    /// Problems found so far, if the weights are checked instead of read.
    audit: Option<Arc<Mutex<Vec<CheckpointError>>>>,
}

/// The conversion of a tensor's kind when it is read.
#[derive(Clone, Copy)]
enum Conversion {
    Keep,
    To(Kind),
    AtMost(Kind),
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("path", &self.store.path())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl From<Store> for Weights {
    fn from(store: Store) -> Self {
        Self {
            store: Arc::new(store),
            prefix: String::new(),
            kind: Conversion::Keep,
            device: Device::Cpu,
            names: None,
            linear: LinearOptions::default(),
            audit: None,
        }
    }
}

impl Weights {
    /// Opens a file or folder of weights; see [`Store::open`].
    ///
    /// # Errors
    /// Those of [`Store::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Store::open(path).map(Self::from)
    }

    /// Tensors that are already in memory.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Store::from_tensors(tensors).into()
    }

    /// Tensors that are drawn from the seed and their own names; see [`Store::synthetic`].
    #[must_use]
    pub fn synthetic(seed: u64) -> Self {
        Store::synthetic(seed).into()
    }

    /// Zeros that take no memory: a model built on them lists the tensors that it needs; see [`Store::blank`].
    #[must_use]
    pub fn blank() -> Self {
        Store::blank().into()
    }

    /// The cursor of the sub-module `name`.
    #[must_use]
    pub fn at(&self, name: impl AsRef<str>) -> Self {
        let prefix = match name.as_ref() {
            "" => self.prefix.clone(),
            name => format!("{}{name}.", self.prefix),
        };
        Self { prefix, ..self.clone() }
    }

    /// Converts tensors to this kind when they are read. Default: kept as they are stored.
    #[must_use]
    pub fn kind(self, kind: Kind) -> Self {
        Self {
            kind: Conversion::To(kind),
            ..self
        }
    }

    /// Keeps tensors that are stored narrower than this kind, and converts others to it.
    ///
    /// Layers widen narrow weights one at a time: a 12 B model in bf16 computes in f32 in half the memory that f32
    /// weights would take.
    #[must_use]
    pub fn at_most(self, kind: Kind) -> Self {
        Self {
            kind: Conversion::AtMost(kind),
            ..self
        }
    }

    /// Puts tensors on this device. Default: the CPU.
    #[must_use]
    pub fn device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Translates the names that parts ask for into the file's names.
    #[must_use]
    pub fn named(self, map: NameMap) -> Self {
        Self {
            names: Some(map),
            ..self
        }
    }

    /// Returns `true` if the tensor `name` below the cursor is there; always `true` for synthetic weights.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        let map = self.map(&self.full(name));
        map.names().iter().all(|name| self.store.contains(name))
    }

    /// Closes the account.
    ///
    /// # Errors
    /// [`CheckpointError::Unused`] if there are tensors that no part asked for.
    pub fn finish(&self) -> Result<()> {
        let names = self.unused();
        if self.audit.is_some() || names.is_empty() {
            Ok(())
        } else {
            Err(self.store.error(CheckpointError::Unused { names }))
        }
    }

    /// A tensor's name without the cursor.
    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The tensors of the file that a tensor is made of.
    fn map(&self, full: &str) -> TensorMap {
        self.names
            .map_or_else(|| TensorMap::Name(full.to_owned()), |map| map(full))
    }
}

fn same_but_ones(a: &[i64], b: &[i64]) -> bool {
    let without_ones = |shape: &[i64]| shape.iter().copied().filter(|&side| side != 1).collect::<Vec<_>>();
    without_ones(a) == without_ones(b)
}
