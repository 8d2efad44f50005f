//! Atomic writing of folders, which appear whole or not at all.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::durable::{above, sync_entry, sync_tree};
use crate::output_path::followed;
use crate::{Error, Result, leftovers, printable};

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
    /// [`Error::Io`] if the parent folder does not exist or cannot be written, if the path does not end in a name
    /// (`""`, `.`, `..`), or if a file, a folder with files in it or a mount point has this name: those are never
    /// replaced.
    pub fn create(path: &'a Path) -> Result<Self> {
        // A slash at the end would hide a link.
        let (target, _) = followed(&path.components().collect::<PathBuf>())?;
        let fault = |kind, words: &str| Error::Io {
            path: path.to_owned(),
            source: io::Error::new(kind, words),
        };
        if path.file_name().is_none() || target.file_name().is_none() {
            let words = "the path ends in no name; expected the name of a new folder";
            return Err(fault(io::ErrorKind::InvalidInput, words));
        }
        let parent = above(&target);
        if !parent.exists() {
            return Err(Error::io(parent)(io::ErrorKind::NotFound.into()));
        }
        if is_mount_point(&target, parent) {
            let words = "it is a mount point, which cannot be replaced; name a new folder in it";
            return Err(fault(io::ErrorKind::ResourceBusy, words));
        }
        if path.exists() && path.read_dir().map_err(Error::io(path))?.next().is_some() {
            let words = "the folder is not empty; name a new one";
            return Err(fault(io::ErrorKind::DirectoryNotEmpty, words));
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
    /// [`Error::Io`] if the operating system refuses, the disk fails, or the name has been taken in the meantime.
    /// The folder is then kept under a name next to the path, which the error gives.
    pub fn publish(self) -> Result<()> {
        let renamed = sync_tree(self.folder.path()).and_then(|()| self.rename());
        // From here on nothing removes the folder.
        let (path, temporary) = (self.path, self.folder.keep());
        if let Err(error) = renamed {
            return Err(kept(path, &temporary, error));
        }
        sync_entry(&self.target)
    }

    fn rename(&self) -> Result<()> {
        let renamed = || {
            if self.target.exists() {
                // Removes only an empty folder.
                std::fs::remove_dir(&self.target)?;
            }
            std::fs::rename(self.folder.path(), &self.target)
        };
        renamed().map_err(Error::io(self.path))
    }
}

/// Gives a folder that could not be published a name under which it stays, and adds it to the error.
fn kept(path: &Path, temporary: &Path, error: Error) -> Error {
    let visible = leftovers::kept_name(temporary);
    let second = visible.with_extension("2");
    let taken = |name: &&PathBuf| std::fs::rename(temporary, name).is_ok();
    let shown = |path: &Path| printable(&path.display().to_string());
    let place = match [&visible, &second].into_iter().find(taken) {
        Some(name) => format!("what was written is kept in {}", shown(name)),
        None => format!(
            "what was written is in {}, which could not be renamed; rename it within ten minutes, after which \
             another program may remove it",
            shown(temporary)
        ),
    };
    match error {
        Error::Io { source, .. } => Error::Io {
            path: path.to_owned(),
            source: io::Error::new(source.kind(), format!("{source}; {place}")),
        },
        other => other,
    }
}

/// Returns `true` if a folder is the root of another file system than that of its parent. Another mount of the
/// same file system is not found here; publishing fails there.
#[cfg(unix)]
fn is_mount_point(path: &Path, parent: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    match (path.metadata(), parent.metadata()) {
        (Ok(own), Ok(above)) => own.is_dir() && own.dev() != above.dev(),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_mount_point(_path: &Path, _parent: &Path) -> bool {
    false
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

    fn words(error: &Error) -> String {
        std::error::Error::source(error).unwrap().to_string()
    }

    #[test]
    fn a_name_that_is_taken_or_none_is_refused_before_any_work() {
        let all = tempfile::tempdir().unwrap();
        let file = all.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(OutputFolder::create(&file).is_err());
        assert!(OutputFolder::create(&all.path().join("a".repeat(256))).is_err());
        assert!(OutputFolder::create(&all.path().join("absent").join("part")).is_err());
        let empty = all.path().join("empty");
        fs::create_dir(&empty).unwrap();
        for path in ["", ".", "..", "/"]
            .map(PathBuf::from)
            .iter()
            .chain([&empty.join("..")])
        {
            let error = OutputFolder::create(path).unwrap_err();
            assert!(
                words(&error).contains("expected the name of a new folder"),
                "{path:?}: {error}"
            );
        }
        OutputFolder::create(&empty.join(".")).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_mount_point_is_refused_before_any_work() {
        let error = OutputFolder::create(Path::new("/proc")).unwrap_err();
        assert!(words(&error).contains("it is a mount point"), "{error}");
    }

    #[test]
    fn a_folder_that_cannot_be_published_is_kept_and_named() {
        let all = tempfile::tempdir().unwrap();
        let path = all.path().join("model");
        let folder = OutputFolder::create(&path).unwrap();
        fs::write(folder.path().join("a"), "hours of work").unwrap();
        // The name is taken while the folder is filled.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("other"), "").unwrap();
        let error = folder.publish().unwrap_err();
        let words = words(&error);
        let (_, at) = words.split_once("; what was written is kept in ").unwrap();
        assert_eq!(fs::read_to_string(Path::new(at).join("a")).unwrap(), "hours of work");
        assert!(!at.ends_with(".tmp") && error.to_string().contains("model"), "{at}");
        assert_eq!(fs::read_dir(all.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_synced_is_kept_and_named() {
        let all = tempfile::tempdir().unwrap();
        let path = all.path().join("model");
        let folder = OutputFolder::create(&path).unwrap();
        fs::write(folder.path().join("a"), "hours of work").unwrap();
        crate::durable::log::fail_once();
        let error = folder.publish().unwrap_err();
        let words = words(&error);
        let (_, at) = words.split_once("; what was written is kept in ").unwrap();
        assert_eq!(fs::read_to_string(Path::new(at).join("a")).unwrap(), "hours of work");
        assert!(error.to_string().contains("model") && !path.exists(), "{error}");
    }

    #[test]
    fn a_folder_whose_visible_names_are_taken_is_named_with_the_time_that_is_left() {
        for taken in [1, 2] {
            let all = tempfile::tempdir().unwrap();
            let path = all.path().join("model");
            let folder = OutputFolder::create(&path).unwrap();
            fs::write(folder.path().join("a"), "hours of work").unwrap();
            let visible = leftovers::kept_name(folder.path());
            let (temporary, second) = (folder.path().to_owned(), visible.with_extension("2"));
            for name in [&path, &visible, &second].into_iter().take(1 + taken) {
                fs::create_dir(name).unwrap();
                fs::write(name.join("other"), "").unwrap();
            }
            let words = words(&folder.publish().unwrap_err());
            let (at, says) = match taken {
                1 => (second, "is kept in"),
                _ => (temporary, "rename it within ten minutes"),
            };
            assert!(
                words.contains(&at.display().to_string()) && words.contains(says),
                "{words}"
            );
            assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "hours of work");
        }
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
