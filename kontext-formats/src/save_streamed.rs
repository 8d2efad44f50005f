//! Streaming writer of safetensors files, one tensor after the other.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use kontext_core::{CheckpointError, Error, OutputFile, Result};
use safetensors::tensor::{Dtype, TensorInfo};

use super::StreamedTensor;
use super::quant::Format;
use crate::header_write;
use crate::names::check_unique;

/// Writes tensors of plain formats to a safetensors file, wide ones first; only one is in memory at a time.
/// The file appears whole or not at all.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written; [`Error::Checkpoint`] for a format unknown to safetensors;
/// [`Error::InvalidArgument`] for bytes that do not match the shape, two tensors of one name, or one called
/// `__metadata__`; any error that a tensor's own function returns.
pub fn save_streamed<'a>(
    path: impl AsRef<Path>,
    text: HashMap<String, String>,
    tensors: impl IntoIterator<Item = StreamedTensor<'a>>,
) -> Result<()> {
    let path = path.as_ref();
    let mut tensors: Vec<StreamedTensor<'a>> = tensors.into_iter().collect();
    check_unique(tensors.iter().map(|tensor| tensor.name.as_str()))?;
    tensors.sort_by(|a, b| {
        b.format
            .bytes()
            .cmp(&a.format.bytes())
            .then_with(|| a.name.cmp(&b.name))
    });
    let (mut infos, mut end) = (Vec::with_capacity(tensors.len()), 0);
    for tensor in &tensors {
        let unknown = || CheckpointError::Dtype {
            name: tensor.name.clone(),
            dtype: tensor.format.name().to_owned(),
        };
        let dtype = dtype_of(tensor.format)
            .ok_or_else(unknown)
            .map_err(Error::checkpoint(path))?;
        let start = end;
        end = end_of(tensor, start)?;
        infos.push((
            tensor.name.clone(),
            TensorInfo {
                dtype,
                shape: tensor.shape.clone(),
                data_offsets: (start, end),
            },
        ));
    }
    let header = header_write::bytes(Some(text), &infos)?;

    let mut file = OutputFile::create(path)?;
    let mut out = BufWriter::new(file.writer());
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(path));
    write(&header)?;
    for tensor in tensors {
        let expected = end_of(&tensor, 0)?;
        let data = (tensor.data)()?;
        if data.len() != expected {
            let got = format!("{} in `{}`", data.len(), tensor.name);
            return Err(Error::invalid("bytes of a tensor", expected.to_string(), got));
        }
        write(&data)?;
    }
    out.flush().map_err(Error::io(path))?;
    drop(out);
    file.publish()
}

/// Returns the end of a tensor's bytes that begin at `start`.
fn end_of(tensor: &StreamedTensor<'_>, start: usize) -> Result<usize> {
    let mut sides = tensor.shape.iter();
    let bytes = sides.try_fold(tensor.format.bytes(), |bytes, side| bytes.checked_mul(*side));
    let end = bytes.and_then(|bytes| bytes.checked_add(start));
    end.filter(|end| isize::try_from(*end).is_ok()).ok_or_else(|| {
        let got = format!("{:?} in {:?}", tensor.shape, tensor.name);
        Error::invalid("shape of a tensor", "one that fits in memory", got)
    })
}

fn dtype_of(format: Format) -> Option<Dtype> {
    Some(match format {
        Format::F32 => Dtype::F32,
        Format::F16 => Dtype::F16,
        Format::Bf16 => Dtype::BF16,
        Format::F8E4M3 => Dtype::F8_E4M3,
        Format::F8E5M2 => Dtype::F8_E5M2,
        Format::Int8 => Dtype::I8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::Store;

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensor = |name: &str, format, bytes: &'static [u8]| {
            StreamedTensor::new(name, format, &[2], move || Ok(Cow::Borrowed(bytes)))
        };
        let text = || {
            (0..9)
                .map(|n| (format!("key {n}"), n.to_string()))
                .collect::<HashMap<_, _>>()
        };
        let tensors = || {
            [
                tensor("b", Format::F8E4M3, &[0x38, 0xb8]),
                tensor("a", Format::F32, &[0, 0, 128, 63, 0, 0, 0, 64]),
            ]
        };
        save_streamed(&path, text(), tensors()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for _ in 0..4 {
            save_streamed(&path, text(), tensors()).unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes);
        }
        let weights = Store::open(&path).unwrap();
        assert_eq!(weights.metadata(), text().into_iter().collect());
        assert_eq!(Vec::<f32>::try_from(weights.raw("a").unwrap()).unwrap(), [1.0, 2.0]);
        let b = weights.raw("b").unwrap().to_kind(tch::Kind::Float);
        assert_eq!(Vec::<f32>::try_from(b).unwrap(), [1.0, -1.0]);
        let short = [tensor("a", Format::F32, &[0, 0, 128, 63])];
        let error = save_streamed(folder.path().join("b.safetensors"), HashMap::new(), short).unwrap_err();
        assert_eq!(error.to_string(), "invalid bytes of a tensor: expected 8, got 4 in `a`");
        for shape in [[usize::MAX, 2], [1 << 62, 1]] {
            let large = [StreamedTensor::new("a", Format::F32, &shape, || {
                Ok(Cow::Borrowed(&[][..]))
            })];
            let error = save_streamed(folder.path().join("b.safetensors"), HashMap::new(), large).unwrap_err();
            assert!(
                error.to_string().contains("expected one that fits in memory"),
                "{error}"
            );
        }
        let double = ["a", "a"].map(|name| tensor(name, Format::F8E4M3, &[0x38, 0xb8]));
        let error = save_streamed(folder.path().join("b.safetensors"), HashMap::new(), double).unwrap_err();
        assert!(
            error.to_string().ends_with("expected each once, got \"a\" twice"),
            "{error}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
