//! Text files and folders, with errors that name them.

use std::path::Path;

use anyhow::Context;

use crate::announce;

/// Reads a text file, also one that starts with a byte order mark.
///
/// # Errors
/// If the file cannot be read or is not UTF-8.
pub fn read(path: &Path) -> anyhow::Result<String> {
    Ok(kontext_core::read_text(path)?)
}

/// Writes a text file through a temporary file and a rename.
///
/// # Errors
/// If the file cannot be created or written.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    Ok(kontext_core::write_file(path, text.as_bytes())?)
}

/// Writes a text file like [`write()`], and announces it.
///
/// # Errors
/// Those of [`write()`].
pub fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    write(path, text)?;
    announce(format_args!("wrote {}", path.display()));
    Ok(())
}

/// Creates a folder and its parents; an existing one is left as it is.
///
/// # Errors
/// If the folder cannot be created.
pub fn create_folder(path: &Path) -> anyhow::Result<()> {
    kontext_core::create_folder(path).with_context(|| format!("cannot make the folder {}", path.display()))
}
