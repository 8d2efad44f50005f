//! Atomic writing of folders, which appear whole or not at all.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::durable::{above, sync_entry, sync_tree};
use crate::output_path::followed;
use crate::{Error, Result, leftovers};

/// A temporary folder next to `path`, renamed to `path` by [`OutputFolder::publish`]. Dropped before that, it
/// leaves nothing. That of a killed program is removed as [`OutputFile`](crate::OutputFile) says.
#[derive(Debug)]
pub struct OutputFolder<'a> {
    path: &'a Path,
    /// The path, or the target of its link.
    target: PathBuf,
    folder: TempDir,
    /// The opened folder, which holds its lock.
    _lock: Option<std::fs::File>,
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
        let parent = above(&target);
        if !parent.exists() {
            return Err(Error::io(parent)(io::ErrorKind::NotFound.into()));
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
        let mut builder = leftovers::builder();
        // By default, a temporary folder is private to its owner.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let (folder, lock) = loop {
            let folder = builder.tempdir_in(parent).map_err(Error::io(path))?;
            let opened = leftovers::open_folder(folder.path()).map_err(Error::io(path))?;
            if opened
                .as_ref()
                .is_none_or(|opened| leftovers::claim(opened, folder.path()))
            {
                break (folder, opened);
            }
        };
        if let Some(lock) = &lock {
            leftovers::sweep_once(parent, lock);
        }
        Ok(Self {
            path,
            folder,
            target,
            _lock: lock,
        })
    }

    /// Returns the folder to write files to.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until the folder's files are on disk, renames it to its final path, and waits until the name is
    /// on disk, too.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system refuses, or the name has been taken in the meantime.
    pub fn publish(self) -> Result<()> {
        sync_tree(self.folder.path())?;
        if self.target.exists() {
            // Removes only an empty folder.
            std::fs::remove_dir(&self.target).map_err(Error::io(self.path))?;
        }
        std::fs::rename(self.folder.path(), &self.target).map_err(Error::io(self.path))?;
        let _renamed = self.folder.keep();
        sync_entry(&self.target)
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
    fn a_folder_is_on_disk_whole_before_its_name_is() {
        let all = tempfile::tempdir().unwrap();
        let path = all.path().join("model");
        let folder = OutputFolder::create(&path).unwrap();
        fs::create_dir(folder.path().join("part")).unwrap();
        fs::write(folder.path().join("part/a"), "a").unwrap();
        let inside = folder.path().to_owned();
        crate::durable::log::take();
        folder.publish().unwrap();
        let synced = crate::durable::log::take();
        let file = inside.join("part/a");
        let expected = [file.clone(), inside.join("part"), inside, all.path().to_owned()];
        assert_eq!(synced, if cfg!(unix) { expected.to_vec() } else { vec![file] });
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
