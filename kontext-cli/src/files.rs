//! Text files and folders, with errors that name them.

use std::path::Path;

use anyhow::Context;
use kontext_core::{Error, utf8};

/// Reads a text file, also one that starts with a byte order mark.
///
/// # Errors
/// If the file cannot be read or is not UTF-8.
pub fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    Ok(utf8(&bytes).map_err(|reason| Error::config(path, reason))?.to_owned())
}

/// Writes a text file through a temporary file and a rename.
///
/// # Errors
/// If the file cannot be created or written.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    Ok(kontext_core::write_file(path, text.as_bytes())?)
}

/// Creates a folder and its parents; an existing one is left as it is.
///
/// # Errors
/// If the folder cannot be created.
pub fn create_folder(path: &Path) -> anyhow::Result<()> {
    kontext_core::create_folder(path).with_context(|| format!("cannot make the folder {}", path.display()))
}
