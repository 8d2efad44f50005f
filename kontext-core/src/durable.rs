//! Writing through to the disk: files, folders and their entries.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Creates a folder and its parents, and waits until the new ones are on disk. An existing folder is left as
/// it is.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be created or a file has its name.
pub fn create_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let missing: Vec<PathBuf> = path
        .ancestors()
        .filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        .map(Path::to_owned)
        .collect();
    #[expect(clippy::disallowed_methods, reason = "it is called here only")]
    std::fs::create_dir_all(path).map_err(Error::io(path))?;
    missing.iter().rev().try_for_each(sync_entry)
}

/// Returns the folder that holds a path.
pub(crate) fn above(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Waits until a file is on disk; `path` is named in errors.
pub(crate) fn sync_file(file: &File, path: &Path) -> Result<()> {
    #[cfg(test)]
    log::failure().map_err(Error::io(path))?;
    supported(file.sync_all()).map_err(Error::io(path))?;
    #[cfg(test)]
    log::push(path);
    Ok(())
}

/// Waits until a path's entry in its folder is on disk, without which a new name may be lost in a power cut.
/// Does nothing if the folder may be written but not read, and on Windows, whose folders cannot be opened.
///
/// # Errors
/// [`Error::Io`] if the operating system fails to write.
pub fn sync_entry(path: impl AsRef<Path>) -> Result<()> {
    sync_folder(above(path.as_ref()))
}

fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(path) {
        Ok(folder) => sync_file(&folder, path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// Appends bytes to a file that is open for appending, and waits until they are on disk. A program that is killed
/// meanwhile leaves the first of them.
///
/// # Errors
/// [`Error::Io`] with `path` if the operating system fails to write.
///
/// # Example
/// ```
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("log.jsonl");
/// let mut file = std::fs::File::options().append(true).create(true).open(&path).unwrap();
/// kontext_core::append(&mut file, &path, b"{}\n")?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"{}\n");
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn append(file: &mut File, path: &Path, bytes: &[u8]) -> Result<()> {
    file.write_all(bytes).map_err(Error::io(path))?;
    sync_file(file, path)
}

/// Waits until a folder with all of its files and folders is on disk.
pub(crate) fn sync_tree(path: &Path) -> Result<()> {
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io(entry.path()))?);
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            // Windows syncs only files that are open for writing.
            let file = File::options().read(true).write(cfg!(windows)).open(&path);
            sync_file(&file.map_err(Error::io(&path))?, &path)?;
        }
    }
    sync_folder(path)
}

/// Takes the refusal of a file system that cannot sync at all for success.
fn supported(result: io::Result<()>) -> io::Result<()> {
    use io::ErrorKind as Kind;
    match result {
        Err(error) if matches!(error.kind(), Kind::Unsupported | Kind::InvalidInput) => Ok(()),
        other => other,
    }
}

/// The paths that a test's thread has synced.
#[cfg(test)]
pub(crate) mod log {
    use std::cell::{Cell, RefCell};
    use std::io;
    use std::path::{Path, PathBuf};

    thread_local! {
        static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
        static FAILS: Cell<bool> = const { Cell::new(false) };
    }

    /// Lets the next sync of this thread fail.
    pub(crate) fn fail_once() {
        FAILS.set(true);
    }

    pub(super) fn failure() -> io::Result<()> {
        if FAILS.take() {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }

    pub(super) fn push(path: &Path) {
        SYNCED.with_borrow_mut(|paths| paths.push(path.to_owned()));
    }

    pub(crate) fn take() -> Vec<PathBuf> {
        SYNCED.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_new_folder_is_synced_in_the_one_above() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        log::take();
        create_folder(&path).unwrap();
        assert!(path.is_dir());
        let expected = [root.path().to_owned(), root.path().join("a")];
        assert_eq!(log::take(), if cfg!(unix) { expected.to_vec() } else { Vec::new() });
        create_folder(&path).unwrap();
        assert!(log::take().is_empty());
        std::fs::write(root.path().join("file"), "").unwrap();
        assert!(create_folder(root.path().join("file")).is_err());
    }

    #[test]
    fn a_failed_sync_is_an_error_and_a_file_system_without_it_none() {
        for (kind, ok) in [
            (io::ErrorKind::InvalidInput, true),
            (io::ErrorKind::Unsupported, true),
            (io::ErrorKind::StorageFull, false),
            (io::ErrorKind::Other, false),
        ] {
            assert_eq!(supported(Err(kind.into())).is_ok(), ok, "{kind}");
        }
    }
}
