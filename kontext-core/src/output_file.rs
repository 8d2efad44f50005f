//! Atomic writing of files, which appear whole or not at all.

use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// A temporary file in the folder of `path`, renamed to `path` by [`OutputFile::publish`]. Dropped before
/// that, it leaves nothing.
#[derive(Debug)]
pub struct OutputFile<'a> {
    path: &'a Path,
    file: NamedTempFile,
}

impl<'a> OutputFile<'a> {
    /// Creates the file, with the user's permissions for new files.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder does not exist or cannot be written, or a folder has this name.
    pub fn create(path: &'a Path) -> Result<Self> {
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        if path.is_dir() {
            return Err(Error::io(path)(io::ErrorKind::IsADirectory.into()));
        }
        if !folder.exists() {
            return Err(Error::io(folder)(io::ErrorKind::NotFound.into()));
        }
        let mut builder = tempfile::Builder::new();
        // By default, a temporary file is private to its owner.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        Ok(Self {
            path,
            file: builder.tempfile_in(folder).map_err(Error::io(path))?,
        })
    }

    /// Returns the file to write to.
    pub fn writer(&mut self) -> &mut std::fs::File {
        self.file.as_file_mut()
    }

    /// Renames the file to its final path, replacing any existing file.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system refuses.
    pub fn publish(self) -> Result<()> {
        #[cfg(feature = "failpoints")]
        crate::failpoint::reached(self.path)?;
        self.file
            .persist(self.path)
            .map(drop)
            .map_err(|e| Error::io(self.path)(e.error))
    }
}

/// Checks, before any work, that a file can be written to `path`.
///
/// # Errors
/// The errors of [`OutputFile::create`].
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    OutputFile::create(path.as_ref()).map(drop)
}
