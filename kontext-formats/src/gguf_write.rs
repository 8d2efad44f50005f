//! Streaming writer of GGUF files, one tensor after the other.
//!
//! Source: ggml-org/ggml `docs/gguf.md`; ggml-org/llama.cpp `gguf-py/gguf/gguf_writer.py`, whose output is
//! reproduced byte for byte.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use kontext_core::{Error, OutputFile, Result};

use super::gguf::{ALIGNMENT, ALIGNMENT_KEY, MAGIC};
use super::gguf_value::{Value, write_text};
use super::quant::Format;

/// The GGUF version written.
const VERSION: u32 = 3;
/// Longest tensor name that programs for image models read (stable-diffusion.cpp, ComfyUI-GGUF); llama.cpp
/// itself reads 63.
const LONGEST_NAME: usize = 127;

/// A tensor to be written to a file; its bytes are requested at its turn.
pub struct StreamedTensor<'a> {
    pub(super) name: String,
    pub(super) format: Format,
    pub(super) shape: Vec<usize>,
    pub(super) data: Provider<'a>,
}

type Provider<'a> = Box<dyn FnOnce() -> Result<Cow<'a, [u8]>> + 'a>;

impl fmt::Debug for StreamedTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "StreamedTensor({} {} {:?})",
            self.name,
            self.format.name(),
            self.shape
        )
    }
}

impl<'a> StreamedTensor<'a> {
    /// Creates a tensor with a shape in torch's order; `data` returns its bytes, row after row in the format.
    pub fn new(
        name: impl Into<String>,
        format: Format,
        shape: &[usize],
        data: impl FnOnce() -> Result<Cow<'a, [u8]>> + 'a,
    ) -> Self {
        Self {
            name: name.into(),
            format,
            shape: shape.to_vec(),
            data: Box::new(data),
        }
    }

    /// Returns its type number and its size in bytes, if a file can hold it.
    fn check(&self) -> Result<(u32, u64)> {
        let wrong = |expected: String, got: String| {
            Err(Error::invalid(
                "tensor for a GGUF file",
                expected,
                format!("{got} in `{}`", self.name),
            ))
        };
        if !(1..=LONGEST_NAME).contains(&self.name.len()) {
            return wrong(
                format!("a name of 1 to {LONGEST_NAME} bytes"),
                format!("{} bytes", self.name.len()),
            );
        }
        let Some(number) = self.format.gguf_type() else {
            return wrong("a format of GGUF".to_owned(), self.format.name().to_owned());
        };
        let bytes = match self.shape.as_slice() {
            [rows @ .., columns] if rows.len() < 4 && !self.shape.contains(&0) => {
                let row = self.format.row_bytes(*columns);
                row.and_then(|row| rows.iter().try_fold(row, |bytes, side| bytes.checked_mul(*side)))
            }
            _ => None,
        };
        match bytes.filter(|&bytes| isize::try_from(bytes).is_ok()) {
            Some(bytes) => Ok((number, bytes as u64)),
            None => wrong(
                format!(
                    "1 to 4 sides, the last a multiple of {}, the block of {}",
                    self.format.block(),
                    self.format.name()
                ),
                format!("{:?}", self.shape),
            ),
        }
    }
}

/// Writes a GGUF file of version 3. Tensors are stored in the given order, aligned to 32 bytes; only one is
/// in memory at a time. The file appears whole or not at all.
///
/// Programs look for the text `general.architecture` in the metadata ("flux"), and quantised files carry
/// `general.quantization_version` (2, U32) and `general.file_type` (U32).
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written; [`Error::InvalidArgument`] for a tensor that no file can
/// hold, bytes that do not match its shape, or a duplicate name; any error that a tensor's own function
/// returns.
pub fn write_gguf<'a>(
    path: impl AsRef<Path>,
    metadata: &[(&str, Value)],
    tensors: impl IntoIterator<Item = StreamedTensor<'a>>,
) -> Result<()> {
    let path = path.as_ref();
    let tensors: Vec<StreamedTensor<'a>> = tensors.into_iter().collect();
    let header = header(metadata, &tensors)?;
    let mut file = OutputFile::create(path)?;
    let mut out = BufWriter::new(file.writer());
    out.write_all(&header).map_err(Error::io(path))?;
    for tensor in tensors {
        let (_, expected) = tensor.check()?;
        let data = (tensor.data)()?;
        if data.len() as u64 != expected {
            let got = format!("{} in `{}`", data.len(), tensor.name);
            return Err(Error::invalid("bytes of a tensor", expected.to_string(), got));
        }
        write_padded(&mut out, &data).map_err(Error::io(path))?;
    }
    out.flush().map_err(Error::io(path))?;
    drop(out);
    file.publish()
}

fn write_padded(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    out.write_all(data)?;
    out.write_all(&[0; ALIGNMENT][..data.len().next_multiple_of(ALIGNMENT) - data.len()])
}

/// Builds everything before the data.
fn header(metadata: &[(&str, Value)], tensors: &[StreamedTensor<'_>]) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    let mut names = BTreeSet::new();
    for (key, value) in metadata {
        if key.is_empty() || *key == ALIGNMENT_KEY || !names.insert(*key) {
            let expected = format!("names that are given once, and no `{ALIGNMENT_KEY}`");
            return Err(Error::invalid("metadata for a GGUF file", expected, format!("`{key}`")));
        }
        write_text(key, &mut out);
        value.write_typed(&mut out);
    }
    let mut names = BTreeSet::new();
    let mut offset = 0_u64;
    for tensor in tensors {
        let (number, bytes) = tensor.check()?;
        if !names.insert(&tensor.name) {
            let got = format!("`{}` twice", tensor.name);
            return Err(Error::invalid(
                "tensors for a GGUF file",
                "names that are given once",
                got,
            ));
        }
        write_text(&tensor.name, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor
            .shape
            .iter()
            .rev()
            .for_each(|side| out.extend((*side as u64).to_le_bytes()));
        out.extend(number.to_le_bytes());
        out.extend(offset.to_le_bytes());
        let padded = bytes.checked_next_multiple_of(ALIGNMENT as u64);
        let end = padded.and_then(|padded| offset.checked_add(padded));
        offset = end.ok_or_else(|| Error::invalid("tensors for a GGUF file", "less than 2^64 bytes", "more"))?;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use kontext_fixtures::Fixture;

    use super::super::gguf_value::Array;
    use super::super::quant::pack;
    use super::*;
    use crate::gguf;

    fn zeros<'a>(name: &str, format: Format, shape: &[usize], bytes: usize) -> StreamedTensor<'a> {
        StreamedTensor::new(name, format, shape, move || Ok(vec![0; bytes].into()))
    }

    #[test]
    fn a_file_has_the_bytes_that_gguf_py_writes() {
        let fixture = Fixture::open("quant.safetensors");
        let weights = fixture.floats("gguf.weights");
        let text = |text: &str| Value::Text(text.to_owned());
        let array = |values: &[Value]| Value::Array(Array::new(values).unwrap());
        let metadata = [
            ("general.architecture", text("flux")),
            ("test.u8", Value::U8(u8::MAX)),
            ("test.i8", Value::I8(i8::MIN)),
            ("test.u16", Value::U16(u16::MAX)),
            ("test.i16", Value::I16(i16::MIN)),
            ("test.u32", Value::U32(u32::MAX)),
            ("test.i32", Value::I32(i32::MIN)),
            ("test.u64", Value::U64(u64::MAX)),
            ("test.i64", Value::I64(i64::MIN)),
            ("test.f32", Value::F32(0.5)),
            ("test.f64", Value::F64(0.1)),
            ("test.bool", Value::Bool(true)),
            ("test.text", text("Käse")),
            ("test.words", array(&[text("a"), text(""), text("word")])),
            ("test.shape", array(&[Value::I32(3), Value::I32(-1), Value::I32(2)])),
        ];
        let tensor = |name: &str, format, shape: &[usize]| {
            let values = weights[..shape.iter().product()].to_vec();
            let columns = *shape.last().unwrap();
            StreamedTensor::new(name, format, shape, move || {
                Ok(pack(format, &values, columns)?.into_parts().0.into())
            })
        };
        let tensors = [
            tensor("first.weight", Format::Q8_0, &[2, 3, 64]),
            tensor("first.bias", Format::F32, &[5]),
            tensor("second.weight", Format::F16, &[3, 64]),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.gguf");
        write_gguf(&path, &metadata, tensors).unwrap();
        assert!(std::fs::read(&path).unwrap() == fixture.bytes("gguf"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.gguf");
        let tensors = [
            zeros("a", Format::Q4K, &[2, 256], 288),
            zeros("b", Format::Bf16, &[2, 3, 1, 5], 60),
        ];
        write_gguf(
            &path,
            &[("general.architecture", Value::Text("flux".to_owned()))],
            tensors,
        )
        .unwrap();
        let file = std::fs::read(&path).unwrap();
        let gguf::Gguf { metadata, tensors } = gguf::read(&file).unwrap();
        assert_eq!(metadata.len(), 1);
        assert_eq!(tensors[0].range.len(), 288);
        assert_eq!(
            (tensors[1].shape.as_slice(), tensors[1].range.start % 32),
            (&[2, 3, 1, 5][..], 0)
        );
    }

    #[test]
    fn nothing_is_left_of_a_file_that_cannot_be_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.gguf");
        let say = |metadata: &[(&str, Value)], tensors: Vec<StreamedTensor<'_>>| {
            write_gguf(&path, metadata, tensors).unwrap_err().to_string()
        };
        let one = |tensor| say(&[], vec![tensor]);
        assert!(one(zeros("a", Format::F32, &[2], 7)).ends_with("expected 8, got 7 in `a`"));
        assert!(one(zeros("a", Format::Nf4, &[2], 1)).contains("expected a format of GGUF, got NF4 in `a`"));
        assert!(
            one(zeros("a", Format::Q8_0, &[2, 33], 7)).contains("a multiple of 32, the block of Q8_0, got [2, 33]")
        );
        assert!(one(zeros("a", Format::F32, &[1; 5], 4)).contains("1 to 4 sides"));
        assert!(one(zeros("a", Format::F32, &[], 4)).contains("1 to 4 sides"));
        assert!(one(zeros("a", Format::F32, &[usize::MAX, 2], 4)).contains("1 to 4 sides"));
        assert!(one(zeros(&"a".repeat(128), Format::F32, &[1], 4)).contains("got 128 bytes"));
        let twice = vec![zeros("a", Format::F32, &[1], 4), zeros("a", Format::F32, &[1], 4)];
        assert!(say(&[], twice).contains("got `a` twice"));
        assert!(say(&[(ALIGNMENT_KEY, Value::U32(64))], Vec::new()).contains("no `general.alignment`"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
