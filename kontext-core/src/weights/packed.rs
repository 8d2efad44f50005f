//! Weights that stay packed: quantised ones, and those that are left in their file.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{Companion, Entry, Factors, Recipe, Source, Stored, WeightFile, Weights, lock, same_but_ones};
use crate::cuda::Copies;
use crate::nn::{Bytes, Matrix, PackedMatrix, PackedRows};
use crate::prefetch::Prefetch;
use crate::quant::Format;
use crate::{CheckpointError, Error, Result};

/// Linear layers whose weights stay in their file and are read anew, from the system's cache, for each
/// multiplication. They take no memory of the program's own.
///
/// On a CUDA device they are copied there for each multiplication, in the form that they are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeftInFile {
    /// No layers: all are read when the model is built.
    #[default]
    None,
    /// Layers that a model uses once a run ([`Weights::used_once`]), such as the transformer's modulation.
    UsedOnce,
    /// All layers.
    All,
}

impl Entry {
    pub(super) fn new(file: usize, name: &str, stored: &Stored) -> Self {
        let (name, stored) = (name.to_owned(), stored.clone());
        Self {
            file,
            name,
            stored,
            companion: Companion::None,
            companion_bytes: 0,
        }
    }

    /// Whether its elements are more than a kind of libtorch's tells.
    pub(super) fn is_packed(&self) -> bool {
        self.stored.format.is_some() && (self.stored.kind.is_none() || !matches!(self.companion, Companion::None))
    }
}

impl Weights {
    /// Which linear layers leave their weights in the file. Default: none.
    #[must_use]
    pub fn left_in_file(self, left: LeftInFile) -> Self {
        Self { left, ..self }
    }

    /// The same cursor, for layers that a model uses once a run and not once a step.
    #[must_use]
    pub fn used_once(self) -> Self {
        let left = if self.left == LeftInFile::UsedOnce {
            LeftInFile::All
        } else {
            self.left
        };
        Self { left, ..self }
    }

    /// On a CUDA device, brings weights that are left in their file there while others are multiplied, in the order of
    /// the last time. From the first multiplication on it takes a thread that reads the file, and
    /// [`PREFETCH_BUFFERS`](super::PREFETCH_BUFFERS) of the largest weight there and in pinned memory. Does nothing on
    /// other devices, and where it fails weights are copied when they are wanted.
    #[must_use]
    pub fn prefetched(self) -> Self {
        let of = |index| Arc::new(Prefetch::new(move |capacity| Copies::new(index, capacity)));
        let prefetch = if let Device::Cuda(index) = self.device {
            Some(of(index))
        } else {
            None
        };
        Self { prefetch, ..self }
    }

    /// The weight [out, in] of the linear layer at the cursor: packed if it is stored so, or left in its file.
    pub(crate) fn matrix(&self, name: &str, shape: [i64; 2]) -> Result<Matrix> {
        let full = format!("{}{name}", self.prefix);
        if self.audit {
            return Ok(Matrix::Plain(self.tensor(name, &shape)?));
        }
        let recipe = self.map.map_or_else(|| Recipe::Name(full.clone()), |map| map(&full));
        // What is fused with a weight needs it wide.
        let fused = self.fuses(&full);
        if !fused && let Some(rows) = self.packed_rows(&recipe, shape)? {
            return Ok(Matrix::Packed(rows));
        }
        match self.quantize.filter(|to| to.fits(shape[1]) && !self.is_synthetic()) {
            Some(to) if fused => {
                let matrix = to.matrix(&self.tensor(name, &shape)?)?;
                Ok(Matrix::Packed(PackedRows::new(vec![Arc::new(matrix)], self.device)?))
            }
            Some(to) => Ok(Matrix::Packed(self.packed_now(to, &recipe, shape)?)),
            None => Ok(Matrix::Plain(self.tensor(name, &shape)?)),
        }
    }

    /// The rows that a recipe names, where one of its tensors is to stay packed and all can.
    fn packed_rows(&self, recipe: &Recipe, shape: [i64; 2]) -> Result<Option<PackedRows>> {
        let Source::Files { files, entries } = &self.store.source else {
            return Ok(None);
        };
        let found = recipe
            .names()
            .iter()
            .map(|name| entries.get(name))
            .collect::<Option<Vec<_>>>();
        let Some(found) = found else { return Ok(None) };
        if !found.iter().all(|e| e.stored.format.is_some())
            || !(self.left == LeftInFile::All || found.iter().any(|e| e.is_packed()))
        {
            return Ok(None);
        }
        let mut matrices = Vec::with_capacity(found.len());
        for (name, entry) in recipe.names().iter().zip(&found) {
            let mut matrix = self.packed_matrix(files, entry, name)?;
            // Sizes of one may stand elsewhere, as for plain tensors; rows with blocks or factors cannot be cut anew.
            let free = matrix.format.block() == 1 && !matches!(matrix.factors, Factors::Rows(_));
            if free && found.len() == 1 && same_but_ones(&entry.stored.shape, &shape) {
                (matrix.rows, matrix.columns) = (shape[0] as usize, shape[1] as usize);
            }
            if matrix.columns as i64 != shape[1] {
                return Err(self.wrong_shape(&Recipe::Name(name.clone()), &shape, &entry.stored.shape));
            }
            matrices.push(Arc::new(matrix));
        }
        lock(&self.store.used).extend(recipe.names().iter().cloned());
        let prefetch = self.prefetch.clone().filter(|_| self.left == LeftInFile::All);
        let rows = PackedRows::new(matrices, self.device)?.prefetched(prefetch);
        if rows.size() != shape {
            return Err(self.wrong_shape(recipe, &shape, &rows.size()));
        }
        Ok(Some(if matches!(recipe, Recipe::SwapHalves(_)) {
            rows.halves_swapped()
        } else {
            rows
        }))
    }

    fn packed_matrix(&self, files: &[WeightFile], entry: &Entry, name: &str) -> Result<PackedMatrix> {
        let dtype = || CheckpointError::Dtype {
            name: name.to_owned(),
            dtype: entry.stored.dtype.clone(),
        };
        let format = entry.stored.format.ok_or_else(|| self.error(dtype()))?;
        let (rows, columns) = entry.stored.sides();
        let file = files.get(entry.file).ok_or_else(|| self.error(dtype()))?;
        let bytes = match self.left {
            LeftInFile::All => Bytes::Mapped(Arc::clone(file.map()), entry.stored.range.clone()),
            LeftInFile::None | LeftInFile::UsedOnce => Bytes::Held(file.copy(&entry.stored.range)?),
        };
        let factors = entry.companion.read(files)?;
        Ok(PackedMatrix {
            bytes,
            format,
            rows,
            columns,
            factors,
        })
    }

    /// What a packed tensor stands for, in f32 on the host.
    pub(super) fn unpacked(&self, entry: &Entry, name: &str) -> Result<Tensor> {
        let Source::Files { files, .. } = &self.store.source else {
            return Err(Error::invalid("packed tensor", "one in a file", name));
        };
        let matrix = self.packed_matrix(files, entry, name)?;
        let rows = PackedRows::new(vec![Arc::new(matrix)], Device::Cpu)?;
        Ok(Matrix::Packed(rows)
            .dense(Kind::Float)?
            .f_reshape(&entry.stored.shape)?)
    }
}

/// A format as users name it.
impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
