//! Reading of configuration files.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

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
