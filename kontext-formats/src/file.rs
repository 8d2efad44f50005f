//! Memory-mapped weight files: safetensors or GGUF.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kontext_core::{CheckpointError, Error, Result};
use memmap2::Mmap;
use safetensors::tensor::Dtype;
use tch::{Kind, Tensor};

use super::quant::Format;
use super::{gguf, header};

/// A file with a validated header; tensors are read on demand.
pub(super) struct WeightFile {
    pub(super) path: PathBuf,
    file: File,
    map: Arc<Mmap>,
    tensors: BTreeMap<String, Stored>,
    text: BTreeMap<String, String>,
    split: Option<(u64, u64)>,
}

/// Description of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) shape: Vec<i64>,
    /// The libtorch dtype; `None` for packed formats and unknown dtypes.
    pub(super) kind: Option<Kind>,
    /// The storage format, if the tensor can be a weight of a linear layer as it is.
    pub(super) format: Option<Format>,
    /// The file's name for the dtype.
    pub(super) dtype: String,
    /// Byte range in the file.
    pub(super) range: Range<usize>,
}

impl Stored {
    /// Returns the number of elements.
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().product::<i64>().unsigned_abs()
    }

    /// Returns the shape as rows and columns.
    pub(super) fn sides(&self) -> (usize, usize) {
        sides(&self.shape)
    }
}

/// Returns a shape as rows and columns. Blocks of a format run along the last side; the ones after the second
/// side of a 1x1 convolution do not count.
pub(super) fn sides(mut shape: &[i64]) -> (usize, usize) {
    while let [rest @ .., 1] = shape
        && rest.len() > 1
    {
        shape = rest;
    }
    let Some((columns, rows)) = shape.split_last() else {
        return (1, 1);
    };
    (
        rows.iter().product::<i64>().unsigned_abs() as usize,
        columns.unsigned_abs() as usize,
    )
}

impl WeightFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        regular(path)?;
        let file = File::open(path).map_err(Error::io(path))?;
        let map = map(&file).map_err(Error::io(path))?;
        let read = if map.starts_with(gguf::MAGIC) {
            read_gguf
        } else {
            read_safetensors
        };
        let Read { tensors, text, split } = read(&map).map_err(Error::checkpoint(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            map: Arc::new(map),
            tensors,
            text,
            split,
        })
    }

    /// Returns the number, from 1, and the count of the files of a split model, if the header names them.
    pub(super) fn split(&self) -> Option<(u64, u64)> {
        self.split
    }

    /// Returns all tensors.
    pub(super) fn tensors(&self) -> &BTreeMap<String, Stored> {
        &self.tensors
    }

    /// Returns the text metadata of the header.
    pub(super) fn text(&self) -> &BTreeMap<String, String> {
        &self.text
    }

    /// Returns the mapping of the whole file.
    pub(super) fn map(&self) -> &Arc<Mmap> {
        &self.map
    }

    /// Copies a tensor to the host in the file's dtype.
    pub(super) fn read(&self, name: &str) -> Result<Tensor> {
        let missing = || CheckpointError::Missing {
            name: name.to_owned(),
            nearest: None,
        };
        let stored = self
            .tensors
            .get(name)
            .ok_or_else(missing)
            .map_err(Error::checkpoint(&self.path))?;
        let unknown = || CheckpointError::Dtype {
            name: name.to_owned(),
            dtype: stored.dtype.clone(),
        };
        let kind = stored.kind.ok_or_else(unknown).map_err(Error::checkpoint(&self.path))?;
        Ok(Tensor::f_from_data_size(
            &self.copy(&stored.range)?,
            &stored.shape,
            kind,
        )?)
    }

    /// Copies bytes of the file, bypassing the mapping: touched pages of a mapping count as the program's
    /// memory.
    pub(super) fn copy(&self, range: &Range<usize>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        read_at(&self.file, &mut bytes, range.start as u64).map_err(Error::io(&self.path))?;
        Ok(bytes)
    }
}

/// Checks that a path is a file: opening a pipe would wait for its writer.
pub(super) fn regular(path: &Path) -> Result<()> {
    let meta = std::fs::metadata(path).map_err(Error::io(path))?;
    if meta.is_dir() {
        return Err(Error::io(path)(std::io::ErrorKind::IsADirectory.into()));
    }
    if !meta.is_file() {
        let text = "it is a pipe or a device, expected a file: weights are mapped into memory; write them to a file";
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, text);
        return Err(Error::Io {
            path: path.to_owned(),
            source,
        });
    }
    Ok(())
}

/// The content of a header.
struct Read {
    tensors: BTreeMap<String, Stored>,
    text: BTreeMap<String, String>,
    split: Option<(u64, u64)>,
}

fn read_safetensors(file: &[u8]) -> Result<Read, CheckpointError> {
    let (metadata, start) = header::read(file)?;
    let stored_entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (first, end) = info.data_offsets;
        let stored = Stored {
            shape: info.shape.iter().map(|&side| side as i64).collect(),
            kind: kind_of(info.dtype),
            format: format_of(info.dtype),
            dtype: format!("{:?}", info.dtype),
            range: start + first..start + end,
        };
        (name, stored)
    };
    let tensors = metadata.tensors().into_iter().map(stored_entry).collect();
    Ok(Read {
        tensors,
        text: metadata.metadata().clone().unwrap_or_default().into_iter().collect(),
        split: None,
    })
}

fn read_gguf(file: &[u8]) -> Result<Read, CheckpointError> {
    let gguf = gguf::read(file)?;
    let stored_entry = |tensor: gguf::TensorInfo| {
        let stored = Stored {
            shape: tensor.shape,
            kind: plain_kind(tensor.format),
            format: Some(tensor.format),
            dtype: tensor.format.name().to_owned(),
            range: tensor.range,
        };
        (tensor.name, stored)
    };
    let split = gguf.split();
    let text = gguf
        .metadata
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.text()?)))
        .collect();
    Ok(Read {
        tensors: gguf.tensors.into_iter().map(stored_entry).collect(),
        text,
        split,
    })
}

/// Returns the libtorch dtype of a safetensors dtype.
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

/// Returns the storage format of a safetensors dtype that a linear layer can use as it is.
fn format_of(dtype: Dtype) -> Option<Format> {
    Some(match dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::BF16 => Format::Bf16,
        Dtype::F8_E4M3 => Format::F8E4M3,
        Dtype::F8_E5M2 => Format::F8E5M2,
        _ => return None,
    })
}

/// Returns the libtorch dtype of a format that libtorch can compute with.
pub(super) fn plain_kind(format: Format) -> Option<Kind> {
    match format {
        Format::F32 => Some(Kind::Float),
        Format::F16 => Some(Kind::Half),
        Format::Bf16 => Some(Kind::BFloat16),
        _ => None,
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => (bytes, offset) = (bytes.split_at_mut(read).1, offset + read as u64),
        }
    }
    Ok(())
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private and read-only. The remaining risk is another program that truncates the file
    // meanwhile, which ends this one with SIGBUS, as it does every program that maps its weights.
    unsafe { Mmap::map(file) }
}
