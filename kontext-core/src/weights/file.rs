//! One memory-mapped safetensors file.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata};
use safetensors::{SafeTensorError, SafeTensors};
use tch::{Kind, Tensor};

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
            return Err(Error::io(path)(std::io::Error::other("expected a file, this is a folder")));
        }
        let map = map(&file).map_err(Error::io(path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(header_error(path))?;
        // The header's own length comes first, in 8 bytes.
        let data_start = header + 8;
        let end = data_start.saturating_add(metadata.data_len());
        if end != map.len() {
            let reason = format!("its header describes {end} bytes, the file has {}", map.len());
            return Err(Error::checkpoint(path)(CheckpointError::Header { reason }));
        }
        Ok(Self { path: path.to_owned(), map, metadata, data_start })
    }

    /// Name, dtype and shape of each tensor.
    pub(super) fn entries(&self) -> Vec<(String, Dtype, Vec<i64>)> {
        let of = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            (name, info.dtype, info.shape.iter().map(|&s| s as i64).collect())
        };
        self.metadata.tensors().into_iter().map(of).collect()
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
        let shape: Vec<i64> = info.shape.iter().map(|&s| s as i64).collect();
        let (start, end) = info.data_offsets;
        let bytes = self.map.get(self.data_start + start..self.data_start + end).unwrap_or_default();
        Ok(Tensor::f_from_data_size(bytes, &shape, kind)?)
    }
}

/// The libtorch kind of a safetensors dtype.
pub(super) fn kind_of(dtype: Dtype) -> Option<Kind> {
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

fn header_error(path: &Path) -> impl FnOnce(SafeTensorError) -> Error {
    let path = path.to_owned();
    move |error| Error::checkpoint(path)(CheckpointError::Header { reason: error.to_string() })
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private and read-only, and every read copies out of it at once. What
    // remains is that another program truncates the file meanwhile, which ends this one with
    // SIGBUS, as it does every program that maps its weights.
    unsafe { Mmap::map(file) }
}
