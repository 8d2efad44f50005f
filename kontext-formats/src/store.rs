//! A set of named tensors, and the account of which of them were read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kontext_core::{CheckpointError, Error, Result, lock};
use tch::{Device, Tensor};

use super::file::WeightFile;
use super::{Entry, StoredMatrix, names, synthetic};

/// A set of named tensors: those of memory-mapped files, of memory, or drawn from a seed.
///
/// It keeps account of the names that were read, so that a checkpoint with unknown tensors can be refused.
///
/// # Example
/// ```
/// use kontext_core::Tensor;
/// use kontext_formats::Store;
/// let store = Store::from_tensors([("bias".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))]);
/// assert_eq!(store.shape_of("bias"), Some(vec![2]));
/// assert_eq!(store.unused(), ["bias"]);
/// let bias = store.raw("bias")?;
/// assert!(bias.size() == [2] && store.unused().is_empty());
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub struct Store {
    path: PathBuf,
    pub(super) source: Source,
    used: Mutex<BTreeSet<String>>,
}

pub(super) enum Source {
    Files {
        files: Arc<Vec<WeightFile>>,
        entries: BTreeMap<String, Entry>,
    },
    Memory(Mutex<BTreeMap<String, Tensor>>),
    /// Made on demand; without a seed, zeros.
    Synthetic {
        seed: Option<u64>,
        made: Mutex<BTreeMap<String, Vec<i64>>>,
    },
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Tensors that are already in memory.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let tensors = Mutex::new(tensors.into_iter().collect());
        Self::over(PathBuf::from("memory"), Source::Memory(tensors))
    }

    /// Tensors that are drawn from the seed and their own names.
    ///
    /// Matrices have variance 1 / fan-in, norm weights are near 1 and biases near 0. Each tensor is `torch.randn` with
    /// seed `crc32(name) + seed`, so other programs can make the same ones (`tests/reference/synthetic.py` in the
    /// repository does). [`Store::shapes`] lists those made so far, [`save`](super::save) writes them.
    #[must_use]
    pub fn synthetic(seed: u64) -> Self {
        let source = Source::Synthetic {
            seed: Some(seed),
            made: Mutex::default(),
        };
        Self::over(PathBuf::from("synthetic"), source)
    }

    /// Zeros that take no memory: a model built on them lists the tensors that it needs, by [`Store::shapes`].
    #[must_use]
    pub fn blank() -> Self {
        let source = Source::Synthetic {
            seed: None,
            made: Mutex::default(),
        };
        Self::over(PathBuf::from("blank"), source)
    }

    pub(super) fn over(path: PathBuf, source: Source) -> Self {
        Self {
            path,
            source,
            used: Mutex::default(),
        }
    }

    /// The same tensors under other names: each tensor is called what `rename` returns for its name, and those for
    /// which it returns `None` are left out. Synthetic tensors keep their names.
    #[must_use]
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let source = match &self.source {
            Source::Files { files, entries } => {
                let renamed = entries
                    .iter()
                    .filter_map(|(name, entry)| Some((rename(name)?, entry.clone())));
                Source::Files {
                    files: Arc::clone(files),
                    entries: renamed.collect(),
                }
            }
            Source::Memory(tensors) => {
                let tensors = lock(tensors);
                let renamed = tensors
                    .iter()
                    .filter_map(|(name, value)| Some((rename(name)?, value.shallow_clone())));
                Source::Memory(Mutex::new(renamed.collect()))
            }
            Source::Synthetic { seed, made } => Source::Synthetic {
                seed: *seed,
                made: Mutex::new(lock(made).clone()),
            },
        };
        Self::over(self.path.clone(), source)
    }

    /// The file or folder that the tensors come from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the files of weights that were opened: several for a sharded set, none for tensors that are
    /// not in files.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::Files { files, .. } => files.iter().map(|file| file.path.clone()).collect(),
            Source::Memory(_) | Source::Synthetic { .. } => Vec::new(),
        }
    }

    /// Returns `true` for [`Store::synthetic`] and [`Store::blank`] tensors.
    #[must_use]
    pub fn is_synthetic(&self) -> bool {
        matches!(self.source, Source::Synthetic { .. })
    }

    /// Returns `true` if there is a tensor of this name; always `true` for synthetic ones.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Files { entries, .. } => entries.contains_key(name),
            Source::Memory(tensors) => lock(tensors).contains_key(name),
            Source::Synthetic { .. } => true,
        }
    }

    /// The stored shape of a tensor, without reading it; `None` for synthetic ones.
    #[must_use]
    pub fn shape_of(&self, name: &str) -> Option<Vec<i64>> {
        match &self.source {
            Source::Files { entries, .. } => entries.get(name).map(|entry| entry.shape().to_vec()),
            Source::Memory(tensors) => lock(tensors).get(name).map(Tensor::size),
            Source::Synthetic { .. } => None,
        }
    }

    /// A tensor as the file's header describes it; `None` if it is not in a file.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        match &self.source {
            Source::Files { entries, .. } => entries.get(name),
            Source::Memory(_) | Source::Synthetic { .. } => None,
        }
    }

    /// All names, sorted; of synthetic tensors, those made so far.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match &self.source {
            Source::Files { entries, .. } => entries.keys().cloned().collect(),
            Source::Memory(tensors) => lock(tensors).keys().cloned().collect(),
            Source::Synthetic { made, .. } => lock(made).keys().cloned().collect(),
        }
    }

    /// Marks names as read.
    pub fn mark_used<'a>(&self, names: impl IntoIterator<Item = &'a String>) {
        lock(&self.used).extend(names.into_iter().cloned());
    }

    /// The names that were not read yet, sorted; none of synthetic tensors.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        if self.is_synthetic() {
            return Vec::new();
        }
        let used = lock(&self.used);
        self.names().into_iter().filter(|name| !used.contains(name)).collect()
    }

    /// Reads a tensor to the host as it is stored, and marks it as read; packed ones and those with scales are returned
    /// dequantised, in f32.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a missing name and an unknown dtype.
    pub fn raw(&self, name: &str) -> Result<Tensor> {
        let value = match &self.source {
            Source::Files { files, entries } => {
                let entry = entries.get(name).ok_or_else(|| self.missing(name))?;
                if entry.is_packed() {
                    self.read_matrix(name)?.dense(entry.shape())?
                } else {
                    let file = files.get(entry.file).ok_or_else(|| self.missing(name))?;
                    file.read(&entry.name)?
                }
            }
            Source::Memory(tensors) => {
                let value = lock(tensors).get(name).map(Tensor::shallow_clone);
                value.ok_or_else(|| self.missing(name))?
            }
            Source::Synthetic { .. } => return Err(self.missing(name)),
        };
        lock(&self.used).insert(name.to_owned());
        Ok(value)
    }

    /// Draws a synthetic tensor; `None` if the tensors are not synthetic.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn draw(&self, name: &str, shape: &[i64], device: Device) -> Result<Option<Tensor>> {
        let Source::Synthetic { seed, made } = &self.source else {
            return Ok(None);
        };
        lock(made).insert(name.to_owned(), shape.to_vec());
        synthetic::tensor(name, shape, *seed, device).map(Some)
    }

    /// Reads a matrix of a file into memory, in its stored form.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a missing name and a dtype that is not one of a weight; those of reading.
    pub fn read_matrix(&self, name: &str) -> Result<StoredMatrix> {
        self.matrix(name, false)
    }

    /// Maps a matrix of a file, in its stored form: it takes no memory of the program.
    ///
    /// # Errors
    /// As [`Store::read_matrix`].
    pub fn map_matrix(&self, name: &str) -> Result<StoredMatrix> {
        self.matrix(name, true)
    }

    fn matrix(&self, name: &str, mapped: bool) -> Result<StoredMatrix> {
        let Source::Files { files, entries } = &self.source else {
            return Err(Error::invalid("stored matrix", "one in a file", name));
        };
        let entry = entries.get(name).ok_or_else(|| self.missing(name))?;
        let unknown = || {
            self.error(CheckpointError::Dtype {
                name: name.to_owned(),
                dtype: entry.stored.dtype.clone(),
            })
        };
        let format = entry.format().ok_or_else(unknown)?;
        let file = files.get(entry.file).ok_or_else(unknown)?;
        let (rows, columns) = entry.stored.sides();
        let (range, size) = (&entry.stored.range, [rows, columns]);
        if mapped {
            let scales = entry.side.read(files)?;
            Ok(StoredMatrix::mapped(file.map(), range.clone(), format, size, scales))
        } else {
            let bytes = file.copy(range)?;
            Ok(StoredMatrix::new(bytes, format, size, entry.side.read(files)?))
        }
    }

    /// Wraps an error of this checkpoint with its path.
    #[must_use]
    pub fn error(&self, source: CheckpointError) -> Error {
        Error::checkpoint(&self.path)(source)
    }

    /// The error for a missing name, with the nearest one that is there.
    #[must_use]
    pub fn missing(&self, name: &str) -> Error {
        self.error(self.missing_tensor(name))
    }

    /// As [`Store::missing`], without the path.
    #[must_use]
    pub fn missing_tensor(&self, name: &str) -> CheckpointError {
        let all = self.names();
        CheckpointError::Missing {
            name: name.to_owned(),
            nearest: names::nearest(name, all.iter().map(String::as_str)),
        }
    }
}
