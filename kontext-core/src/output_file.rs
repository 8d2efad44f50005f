//! Atomic writing of files, which appear whole or not at all.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::durable::{above, sync_entry, sync_file};
use crate::{Error, Result, leftovers, output_path};

/// A temporary file next to `path`, renamed to `path` by [`OutputFile::publish`]. Dropped before that, it leaves
/// nothing.
///
/// Of a symbolic link, the target is written. A file that is replaced keeps its permissions; one that is
/// read-only is not replaced.
///
/// A program that is killed leaves the file, `.kontext-XXXXXX.tmp`. The first file that another program writes
/// to the same folder by this type removes it, if nothing was written to it for ten minutes and its lock is free.
/// A program looks for such files once in each folder, at its first output there. Without locks of the file
/// system, on Windows, and if another user wrote it, the file stays.
#[derive(Debug)]
pub struct OutputFile<'a> {
    path: &'a Path,
    /// The path, or the target of its link.
    target: PathBuf,
    file: NamedTempFile,
}

impl<'a> OutputFile<'a> {
    /// Creates the file, with the user's permissions for new files.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder does not exist or cannot be written, and those of [`output_path`].
    pub fn create(path: &'a Path) -> Result<Self> {
        let target = output_path(path)?;
        let folder = above(&target);
        if !folder.exists() {
            return Err(Error::io(folder)(io::ErrorKind::NotFound.into()));
        }
        let mut builder = leftovers::builder();
        // By default, a temporary file is private to its owner.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = loop {
            let file = builder.tempfile_in(folder).map_err(Error::io(path))?;
            if leftovers::claim(file.as_file(), file.path()) {
                break file;
            }
        };
        leftovers::sweep_once(folder, file.as_file());
        if let Ok(replaced) = target.metadata() {
            // Some file systems have no permissions.
            let _ = file.as_file().set_permissions(replaced.permissions());
        }
        Ok(Self { path, target, file })
    }

    /// Returns the file to write to.
    pub fn writer(&mut self) -> &mut std::fs::File {
        self.file.as_file_mut()
    }

    /// Waits until the file is on disk, renames it to its final path, replacing any existing file, and waits
    /// until the name is on disk, too. After a power cut the path holds the old file or the new one, whole.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system refuses. A file system that cannot sync is no error.
    pub fn publish(self) -> Result<()> {
        sync_file(self.file.as_file(), self.path)?;
        #[cfg(feature = "failpoints")]
        crate::failpoint::reached(self.path)?;
        self.file
            .persist(&self.target)
            .map(drop)
            .map_err(|e| Error::io(self.path)(e.error))?;
        sync_entry(&self.target)
    }
}

/// Writes a file as [`OutputFile`] does.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
///
/// # Example
/// ```
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("merges.txt");
/// kontext_core::write_file(&path, b"#version: 0.2\n")?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"#version: 0.2\n");
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn write_file(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let mut file = OutputFile::create(path)?;
    file.writer().write_all(bytes).map_err(Error::io(path))?;
    file.publish()
}

/// Checks, before any work, that a file can be written to `path`.
///
/// # Errors
/// The errors of [`OutputFile::create`].
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    OutputFile::create(path.as_ref()).map(drop)
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::durable::log;

    #[test]
    fn a_file_is_on_disk_before_its_name_is_and_both_before_publish_returns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        log::take();
        write_file(&path, b"a").unwrap();
        assert_eq!(log::take(), [path.clone(), folder.path().to_owned()]);
        // A check writes nothing.
        check_writable(&path).unwrap();
        assert!(log::take().is_empty());
    }

    fn write(path: &Path, text: &str) -> Result<()> {
        write_file(path, text.as_bytes())
    }

    #[test]
    fn a_link_stays_a_link_and_its_target_is_written() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, target) = (folder.path().join("link"), elsewhere.path().join("target"));
        symlink(&target, &link).unwrap();
        // First created, then replaced.
        for text in ["new", "newer"] {
            write(&link, text).unwrap();
            assert!(link.is_symlink() && !target.is_symlink());
            assert_eq!(fs::read_to_string(&target).unwrap(), text);
            assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
        }
        symlink(elsewhere.path().join("no/target"), folder.path().join("lost")).unwrap();
        assert!(check_writable(folder.path().join("lost")).is_err());
    }

    #[test]
    fn a_replaced_file_keeps_its_permissions_and_a_read_only_one_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set(0o600);
        write(&path, "new").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        set(0o444);
        assert!(check_writable(&path).is_err() && write(&path, "lost").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
