//! One memory-mapped safetensors file.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Kind, Tensor};

use super::header;
use crate::{CheckpointError, Error, Result};

/// A safetensors file whose header was read and checked; tensors are read on demand.
pub(super) struct WeightFile {
    pub(super) path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

impl WeightFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.is_dir() {
            return Err(Error::io(path)(std::io::ErrorKind::IsADirectory.into()));
        }
        let map = map(&file).map_err(Error::io(path))?;
        let (metadata, data_start) = header::read(&map).map_err(Error::checkpoint(path))?;
        Ok(Self { path: path.to_owned(), map, metadata, data_start })
    }

    /// Name, kind (of those that libtorch knows) and shape of each tensor.
    pub(super) fn entries(&self) -> Vec<(String, Option<Kind>, Vec<i64>)> {
        let of = |(name, info): (String, &TensorInfo)| (name, kind_of(info.dtype), shape_of(info));
        self.metadata.tensors().into_iter().map(of).collect()
    }

    /// Kind and shape of one tensor.
    pub(super) fn entry(&self, name: &str) -> Option<(Option<Kind>, Vec<i64>)> {
        self.metadata.info(name).map(|info| (kind_of(info.dtype), shape_of(info)))
    }

    /// The free text of the header.
    pub(super) fn text(&self) -> BTreeMap<String, String> {
        self.metadata.metadata().clone().unwrap_or_default().into_iter().collect()
    }

    /// Copies a tensor to the host in the file's dtype.
    pub(super) fn read(&self, name: &str) -> Result<Tensor> {
        let missing = || CheckpointError::Missing { name: name.to_owned(), nearest: None };
        let info = self.metadata.info(name).ok_or_else(missing).map_err(Error::checkpoint(&self.path))?;
        let kind = kind_of(info.dtype)
            .ok_or_else(|| CheckpointError::Dtype { name: name.to_owned(), dtype: format!("{:?}", info.dtype) });
        let kind = kind.map_err(Error::checkpoint(&self.path))?;
        let (start, end) = info.data_offsets;
        let bytes = self.map.get(self.data_start + start..self.data_start + end).unwrap_or_default();
        Ok(Tensor::f_from_data_size(bytes, &shape_of(info), kind)?)
    }
}

fn shape_of(info: &TensorInfo) -> Vec<i64> {
    info.shape.iter().map(|&side| side as i64).collect()
}

/// The libtorch kind of a safetensors dtype.
fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F8_E4M3 => Kind::Float8e4m3fn,
        Dtype::F8_E5M2 => Kind::Float8e5m2,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private and read-only, and every read copies out of it at once. What
    // remains is that another program truncates the file meanwhile, which ends this one with
    // SIGBUS, as it does every program that maps its weights.
    unsafe { Mmap::map(file) }
}
