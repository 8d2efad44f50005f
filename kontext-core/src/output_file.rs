//! Writing files that appear whole or not at all.

use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// A file under another name in the folder of `path`, which [`OutputFile::publish`] gives its own name.
/// Dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct OutputFile<'a> {
    path: &'a Path,
    file: NamedTempFile,
}

impl<'a> OutputFile<'a> {
    /// Makes the file. It gets the permissions that the user gives to new files.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder is not there or cannot be written, or a folder has this name.
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
        // A temporary file would be private to its owner.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        Ok(Self {
            path,
            file: builder.tempfile_in(folder).map_err(Error::io(path))?,
        })
    }

    /// Where to write.
    pub fn writer(&mut self) -> &mut std::fs::File {
        self.file.as_file_mut()
    }

    /// Gives the file its name, in place of a file that had it.
    ///
    /// # Errors
    /// [`Error::Io`] where the operating system refuses.
    pub fn publish(self) -> Result<()> {
        self.file
            .persist(self.path)
            .map(drop)
            .map_err(|e| Error::io(self.path)(e.error))
    }
}

/// Checks, before any work, that a file can be written to `path`.
///
/// # Errors
/// Those of [`OutputFile::create`].
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    OutputFile::create(path.as_ref()).map(drop)
}
