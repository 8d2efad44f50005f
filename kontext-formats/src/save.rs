//! Writer of safetensors files.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};
use tch::{Device, Kind, Tensor};

use kontext_core::{CheckpointError, Error, Result, write_file};

use crate::names::check_unique;

use crate::header_write;

/// Writes tensors to a safetensors file, in their dtypes. The file appears whole or not at all.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written, [`Error::Checkpoint`] for a dtype that safetensors cannot
/// hold, [`Error::InvalidArgument`] for two tensors of one name, or one called `__metadata__`.
pub fn save(path: impl AsRef<Path>, tensors: &[(String, Tensor)], text: Option<HashMap<String, String>>) -> Result<()> {
    let path = path.as_ref();
    let bytes = to_bytes(path, tensors, text)?;
    write_file(path, &bytes)
}

/// Serialises tensors to the bytes of a safetensors file; `path` is named in errors.
///
/// # Errors
/// [`Error::Checkpoint`] for a dtype that safetensors cannot hold, [`Error::InvalidArgument`] for two tensors
/// of one name, or one called `__metadata__`.
pub fn to_bytes(path: &Path, tensors: &[(String, Tensor)], text: Option<HashMap<String, String>>) -> Result<Vec<u8>> {
    check_unique(tensors.iter().map(|(name, _)| name.as_str()))?;
    let raw = tensors
        .iter()
        .map(|(name, value)| raw(path, name, value))
        .collect::<Result<Vec<_>>>()?;
    let mut raw: Vec<_> = tensors.iter().map(|(name, _)| name).zip(raw).collect();
    // The order of the safetensors crate: wide tensors first, whose data is then aligned.
    raw.sort_by(|(a, (wide, ..)), (b, (narrow, ..))| narrow.cmp(wide).then(a.cmp(b)));
    let (mut infos, mut end) = (Vec::with_capacity(raw.len()), 0);
    for (name, (dtype, shape, bytes)) in &raw {
        let start = end;
        end += bytes.len();
        let info = TensorInfo {
            dtype: *dtype,
            shape: shape.clone(),
            data_offsets: (start, end),
        };
        infos.push(((*name).clone(), info));
    }
    let mut bytes = header_write::bytes(text, &infos)?;
    bytes.reserve_exact(end);
    raw.iter().for_each(|(_, (.., data))| bytes.extend(data));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(names: &[&str]) -> Result<Vec<u8>> {
        let tensors: Vec<_> = names
            .iter()
            .map(|name| ((*name).to_owned(), Tensor::from_slice(&[1.0_f32])))
            .collect();
        to_bytes(Path::new("a.safetensors"), &tensors, None)
    }

    #[test]
    fn two_tensors_of_one_name_are_refused_and_not_a_panic() {
        assert_eq!(
            saved(&["a", "b", "a"]).unwrap_err().to_string(),
            "invalid names of tensors: expected each once, got \"a\" twice"
        );
        let reserved = saved(&["__metadata__"]).unwrap_err().to_string();
        assert!(reserved.contains("names other than \"__metadata__\""), "{reserved}");
        saved(&["a", "b", ""]).unwrap();
        saved(&[]).unwrap();
    }

    #[test]
    fn tensors_of_any_shape_and_layout_are_saved_or_refused() {
        let cpu = (Kind::Float, Device::Cpu);
        let all = [
            ("scalar".to_owned(), Tensor::from(2.5_f32)),
            ("empty".to_owned(), Tensor::zeros([3, 0], cpu)),
            ("transposed".to_owned(), Tensor::ones([2, 3], cpu).transpose(0, 1)),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        save(&path, &all, None).unwrap();
        let store = crate::Store::open(&path).unwrap();
        for (name, value) in &all {
            assert!(store.raw(name).unwrap().equal(value), "{name}");
        }
        for value in [Tensor::zeros([2], (Kind::ComplexFloat, Device::Cpu)), Tensor::new()] {
            assert!(to_bytes(&path, &[("a".to_owned(), value)], None).is_err());
        }
    }
}
