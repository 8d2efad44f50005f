//! Writer of safetensors files.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

use kontext_core::{CheckpointError, Error, OutputFile, Result};

use crate::header_text;

/// Writes tensors to a safetensors file, in their dtypes. The file appears whole or not at all.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written, [`Error::Checkpoint`] for a dtype that safetensors cannot
/// hold.
pub fn save(path: impl AsRef<Path>, tensors: &[(String, Tensor)], text: Option<HashMap<String, String>>) -> Result<()> {
    let path = path.as_ref();
    let bytes = to_bytes(path, tensors, text)?;
    let mut file = OutputFile::create(path)?;
    file.writer().write_all(&bytes).map_err(Error::io(path))?;
    file.publish()
}

/// Serialises tensors to the bytes of a safetensors file; `path` is named in errors.
///
/// # Errors
/// [`Error::Checkpoint`] for a dtype that safetensors cannot hold.
pub fn to_bytes(path: &Path, tensors: &[(String, Tensor)], text: Option<HashMap<String, String>>) -> Result<Vec<u8>> {
    let raw = tensors
        .iter()
        .map(|(name, value)| raw(path, name, value))
        .collect::<Result<Vec<_>>>()?;
    let header =
        |e: safetensors::SafeTensorError| Error::checkpoint(path)(CheckpointError::Header { reason: e.to_string() });
    let mut views = Vec::with_capacity(raw.len());
    for ((name, _), (dtype, shape, bytes)) in tensors.iter().zip(&raw) {
        views.push((
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), bytes).map_err(header)?,
        ));
    }
    let mut bytes = safetensors::serialize(views, None).map_err(header)?;
    if let Some(text) = text {
        header_text::insert(&mut bytes, &text);
    }
    Ok(bytes)
}

type Raw = (Dtype, Vec<usize>, Vec<u8>);

fn raw(path: &Path, name: &str, value: &Tensor) -> Result<Raw> {
    let value = value.f_to_device(Device::Cpu)?.f_contiguous()?;
    let kind = value.kind();
    let dtype = dtype_of(kind).ok_or_else(|| {
        Error::checkpoint(path)(CheckpointError::Dtype {
            name: name.to_owned(),
            dtype: format!("{kind:?}"),
        })
    })?;
    let shape: Vec<usize> = value.size().iter().map(|&s| s as usize).collect();
    let numel: usize = shape.iter().product();
    // A byte view of the same memory: f_copy_data requires elements of the tensor's own dtype.
    let bytes = value.f_reshape([-1])?.f_view_dtype(Kind::Uint8)?;
    let mut buffer = vec![0_u8; numel * kind.elt_size_in_bytes()];
    let len = buffer.len();
    bytes.f_copy_data(&mut buffer, len)?;
    Ok((dtype, shape, buffer))
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float8e4m3fn => Dtype::F8_E4M3,
        Kind::Float8e5m2 => Dtype::F8_E5M2,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Uint8 => Dtype::U8,
        _ => return None,
    })
}
