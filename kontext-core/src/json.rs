//! Reading and writing of configuration files.

use std::io::Write;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, OutputFile, Result};

/// Reads a JSON file.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; a checkpoint error with line and column if its content is not as
/// expected.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::config(path, format!("{e}; correct it or fetch it again")))
}

/// Writes an indented JSON file, which appears whole or not at all.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn write_json(path: impl AsRef<Path>, value: &serde_json::Value) -> Result<()> {
    let path = path.as_ref();
    let mut file = OutputFile::create(path)?;
    file.writer()
        .write_all(format!("{value:#}\n").as_bytes())
        .map_err(Error::io(path))?;
    file.publish()
}
