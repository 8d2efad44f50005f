//! Helpers of the tests of weight files: the forms that other programs write, and handmade files.
#![allow(clippy::unwrap_used, dead_code)] // In helper functions, of which each test uses some.

use std::error::Error as _;
use std::path::PathBuf;

use kontext_core::{Error, Kind, Tensor};
use kontext_fixtures::Fixture;
#[allow(unused_imports)] // Each test uses some.
pub(crate) use kontext_fixtures::{Part, safetensors_file, with_header};
use tempfile::TempDir;

/// A linear layer as another program stored it (`tests/reference/parts/forms.py`).
pub(crate) struct Form {
    /// The program or format and its setting: "gguf.Q4_K", "bnb.nf4-double".
    pub(crate) name: String,
    /// The whole file.
    pub(crate) file: Vec<u8>,
    pub(crate) shape: [i64; 2],
    /// The weight as that program reads it, f32 [out, in].
    pub(crate) weight: Tensor,
}

impl Form {
    /// Returns the layer's name in the file.
    pub(crate) fn layer(&self) -> &'static str {
        if self.name.starts_with("float8") {
            "double_blocks.0.img_attn.proj"
        } else {
            "layer"
        }
    }
}

/// Returns all forms.
pub(crate) fn forms() -> Vec<Form> {
    let fixture = Fixture::open("forms.safetensors");
    let form = |key: String| {
        let name = key.strip_suffix(".file")?.to_owned();
        let weight = fixture.tensor(&format!("{name}.weight"));
        assert_eq!(weight.kind(), Kind::Float);
        Some(Form {
            file: fixture.bytes(&key),
            shape: weight.size2().unwrap().into(),
            name,
            weight,
        })
    };
    let mut forms: Vec<Form> = fixture.names().into_iter().filter_map(form).collect();
    forms.sort_by(|a, b| a.name.cmp(&b.name));
    forms
}

/// Reads the bytes of `tests/reference/NAME.safetensors`.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(kontext_fixtures::reference(&format!("{name}.safetensors"))).unwrap()
}

/// Writes a file with these bytes. Its format is detected by its content, whatever its name.
pub(crate) fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.weights");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Formats an error with all its causes.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Encodes a GGUF string: length and bytes.
pub(crate) fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

/// Encodes an entry of a GGUF file's metadata, with its value in bytes.
pub(crate) fn entry(key: impl AsRef<[u8]>, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

/// Encodes the description of a tensor in a GGUF file; sides in GGUF's order, columns first.
pub(crate) fn described(name: impl AsRef<[u8]>, sides: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut out = text(name);
    out.extend((sides.len() as u32).to_le_bytes());
    sides.iter().for_each(|side| out.extend(side.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

/// Builds a GGUF file; its data begins at a multiple of 32.
pub(crate) fn gguf_file(version: u32, entries: &[Vec<u8>], tensors: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend(entries.concat());
    out.extend(tensors.concat());
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}
