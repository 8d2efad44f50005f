//! Temporary names, and the removal of files that killed programs left under them.
//!
//! A temporary file or folder is called `.kontext-XXXXXX.tmp` and is locked by its writer as long as it exists.
//! The system releases the lock when the writer ends, in whichever way, so a leftover is one whose lock can be
//! had. Some network and user-space file systems keep locks to one mount, so it must be old as well. On a file
//! system without locks nothing is ever removed.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

const PREFIX: &str = ".kontext-";
const SUFFIX: &str = ".tmp";
/// Random letters of a name.
const RANDOM: usize = 6;
/// Time without a write after which a leftover is removed.
const OLD: Duration = Duration::from_secs(600);
/// Folders remembered as swept.
const REMEMBERED: usize = 1000;

/// The result of a try to lock a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    Taken,
    HeldByAnother,
    /// The file system has no locks.
    Unknown,
}

/// Returns a builder of temporary names. An entry that it makes is to be claimed.
pub(crate) fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX).rand_bytes(RANDOM);
    builder
}

/// Locks a new entry as long as `file` is open. Returns `false` if a program that sweeps at this moment has
/// taken the lock first, and removes the entry: another one is to be made.
pub(crate) fn claim(file: &File, path: &Path) -> bool {
    lock(file) != Lock::HeldByAnother && is_at(file, path)
}

/// Opens a folder, to lock it; `None` on systems that cannot.
pub(crate) fn open_folder(path: &Path) -> std::io::Result<Option<File>> {
    if cfg!(unix) {
        File::open(path).map(Some)
    } else {
        Ok(None)
    }
}

/// Removes the leftovers of killed programs in a folder, once in the life of this process. `own` is an entry
/// of this process: those of other users are not touched. What cannot be removed is left.
pub(crate) fn sweep_once(folder: &Path, own: &File) {
    static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let first = {
        let mut swept = crate::lock(&SWEPT);
        if swept.len() >= REMEMBERED {
            swept.clear();
        }
        swept.insert(folder.to_owned())
    };
    if let (true, Ok(own)) = (first, own.metadata()) {
        sweep(folder, &own);
    }
}

fn sweep(folder: &Path, own: &Metadata) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(is_temporary) {
            continue;
        }
        let path = entry.path();
        let Some(file) = open_leftover(&path, own) else {
            continue;
        };
        if is_dead(lock(&file), || is_old(&path)) && is_at(&file, &path) {
            let is_folder = file.metadata().is_ok_and(|metadata| metadata.is_dir());
            // While the lock is held.
            let _ = if is_folder {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
        }
    }
}

/// Returns `true` if no program writes to an entry: its lock proves this where all programs see it, its age
/// elsewhere.
fn is_dead(lock: Lock, is_old: impl FnOnce() -> bool) -> bool {
    lock == Lock::Taken && is_old()
}

/// Returns `true` if neither an entry nor anything in it was written lately.
fn is_old(path: &Path) -> bool {
    let Ok(metadata) = path.symlink_metadata() else {
        return false;
    };
    let age = metadata.modified().map(|time| SystemTime::now().duration_since(time));
    if !matches!(age, Ok(Ok(age)) if age >= OLD) {
        return false;
    }
    if !metadata.is_dir() {
        return true;
    }
    let entries = std::fs::read_dir(path);
    entries.is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| is_old(&entry.path()))))
}

/// Returns `true` for a temporary name.
fn is_temporary(name: &str) -> bool {
    let random = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX));
    random.is_some_and(|random| random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Returns the name under which an entry is kept: no program removes it, and listings show it.
pub(crate) fn kept_name(temporary: &Path) -> PathBuf {
    let name = temporary
        .file_name()
        .and_then(std::ffi::OsStr::to_str)
        .unwrap_or_default();
    let name = name.trim_start_matches('.').trim_end_matches(SUFFIX);
    temporary.with_file_name(name)
}

/// Opens a leftover, if it is a file or a folder of this process's user.
#[cfg(unix)]
fn open_leftover(path: &Path, own: &Metadata) -> Option<File> {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    let metadata = path.symlink_metadata().ok()?;
    if metadata.uid() != own.uid() || !(metadata.is_file() || metadata.is_dir()) {
        return None;
    }
    let mut options = File::options();
    // Network file systems lock only files that are open for writing.
    options.read(true).write(metadata.is_file());
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options.open(path).ok()
}

#[cfg(not(unix))]
fn open_leftover(_path: &Path, _own: &Metadata) -> Option<File> {
    None
}

/// Tries to take the exclusive lock of a file, which is held until the file is closed.
#[cfg(unix)]
fn lock(file: &File) -> Lock {
    use rustix::fs::{FlockOperation, flock};
    use rustix::io::{Errno, retry_on_intr};

    match retry_on_intr(|| flock(file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Lock::Taken,
        Err(Errno::WOULDBLOCK) => Lock::HeldByAnother,
        Err(_) => Lock::Unknown,
    }
}

#[cfg(not(unix))]
fn lock(_file: &File) -> Lock {
    Lock::Unknown
}

/// Returns `true` if a path still names the opened file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    match (file.metadata(), path.symlink_metadata()) {
        (Ok(opened), Ok(named)) => (opened.dev(), opened.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lock_and_an_age_together_prove_that_a_writer_is_dead() {
        for (lock, old, dead) in [
            (Lock::Taken, true, true),
            (Lock::Taken, false, false),
            (Lock::HeldByAnother, true, false),
            (Lock::Unknown, true, false),
        ] {
            assert_eq!(is_dead(lock, || old), dead, "{lock:?} {old}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_is_as_old_as_the_newest_file_in_its_folders() {
        let root = tempfile::tempdir().unwrap();
        let folders = ["", "a", "a/b"].map(|name| root.path().join(name));
        crate::create_folder(&folders[2]).unwrap();
        let file = folders[2].join("weights");
        std::fs::write(&file, "").unwrap();
        let set = |path: &Path, age: Duration| {
            let opened = File::open(path).unwrap();
            opened.set_modified(SystemTime::now() - age).unwrap();
        };
        set(&file, Duration::ZERO);
        folders.iter().for_each(|folder| set(folder, 2 * OLD));
        assert!(!is_old(root.path()));
        set(&file, 2 * OLD);
        assert!(is_old(root.path()));
        set(&folders[1], Duration::ZERO);
        assert!(!is_old(root.path()));
        assert!(!is_old(&root.path().join("absent")));
    }

    #[test]
    fn only_own_names_are_recognised() {
        assert!(is_temporary(".kontext-aZ09xy.tmp"));
        for other in [
            "kontext-aZ09xy.tmp",
            ".kontext-aZ09xy.tmp.png",
            ".kontext-a/09xy.tmp",
            ".kontext-aZ09x.tmp",
            ".kontext-notes.tmp",
            ".tmpaZ09xy",
        ] {
            assert!(!is_temporary(other), "{other}");
        }
        let kept = kept_name(Path::new("a/.kontext-aZ09xy.tmp"));
        assert_eq!(kept, Path::new("a/kontext-aZ09xy"));
    }
}
