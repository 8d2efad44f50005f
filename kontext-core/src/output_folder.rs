//! Atomic writing of folders, which appear whole or not at all.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::output_path::followed;
use crate::{Error, Result};

/// A temporary folder next to `path`, renamed to `path` by [`OutputFolder::publish`]. Dropped before that, it
/// leaves nothing.
#[derive(Debug)]
pub struct OutputFolder<'a> {
    path: &'a Path,
    /// The path, or the target of its link.
    target: PathBuf,
    folder: TempDir,
}

impl<'a> OutputFolder<'a> {
    /// Creates the folder, with the user's permissions for new folders.
    ///
    /// # Errors
    /// [`Error::Io`] if the parent folder does not exist or cannot be written, or if a file or a folder with
    /// files in it has this name: those are never replaced.
    pub fn create(path: &'a Path) -> Result<Self> {
        // A slash at the end would hide a link.
        let (target, _) = followed(&path.components().collect::<PathBuf>())?;
        let above = target
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        if !above.exists() {
            return Err(Error::io(above)(io::ErrorKind::NotFound.into()));
        }
        if path.exists() && path.read_dir().map_err(Error::io(path))?.next().is_some() {
            let source = io::Error::new(
                io::ErrorKind::DirectoryNotEmpty,
                "the folder is not empty; name a new one",
            );
            return Err(Error::Io {
                path: path.to_owned(),
                source,
            });
        }
        let mut builder = tempfile::Builder::new();
        // By default, a temporary folder is private to its owner.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        Ok(Self {
            path,
            folder: builder.tempdir_in(above).map_err(Error::io(path))?,
            target,
        })
    }

    /// Returns the folder to write files to.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Renames the folder to its final path.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system refuses, or the name has been taken in the meantime.
    pub fn publish(self) -> Result<()> {
        if self.target.exists() {
            // Removes only an empty folder.
            std::fs::remove_dir(&self.target).map_err(Error::io(self.path))?;
        }
        std::fs::rename(self.folder.path(), &self.target).map_err(Error::io(self.path))?;
        let _renamed = self.folder.keep();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_appears_when_it_is_published_and_never_replaces_files() {
        let all = tempfile::tempdir().unwrap();
        let path = all.path().join("part");
        let count = || fs::read_dir(all.path()).unwrap().count();
        let write = |text: &str| {
            let folder = OutputFolder::create(&path)?;
            fs::write(folder.path().join("a"), text).unwrap();
            Ok::<_, Error>(folder)
        };
        drop(write("dropped").unwrap());
        assert_eq!(count(), 0);
        fs::create_dir(&path).unwrap(); // An empty folder is replaced.
        write("kept").unwrap().publish().unwrap();
        let refused = write("lost").unwrap_err();
        assert!(
            std::error::Error::source(&refused)
                .unwrap()
                .to_string()
                .contains("not empty"),
            "{refused}"
        );
        assert_eq!(
            (fs::read_to_string(path.join("a")).unwrap().as_str(), count()),
            ("kept", 1)
        );
    }

    #[test]
    fn a_file_or_nothing_to_stand_in_is_told() {
        let all = tempfile::tempdir().unwrap();
        let file = all.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(OutputFolder::create(&file).is_err());
        assert!(OutputFolder::create(&all.path().join("a".repeat(256))).is_err());
        assert!(OutputFolder::create(&all.path().join("absent").join("part")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_an_empty_folder_stays_a_link_and_its_target_is_filled() {
        let (here, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, target) = (here.path().join("link"), elsewhere.path().join("target"));
        fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let path = link.join("");
        let folder = OutputFolder::create(&path).unwrap();
        fs::write(folder.path().join("a"), "kept").unwrap();
        folder.publish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "kept");
    }
}
