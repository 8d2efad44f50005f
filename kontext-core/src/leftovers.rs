//! Temporary names, and the removal of files that killed programs left under them.
//!
//! A temporary file or folder is called `.kontext-MACHINE-XXXXXX.tmp` and is locked by its writer as long as
//! it exists. The system releases the lock when the writer ends, in whichever way, so a leftover is one whose
//! lock can be had. On a file system without locks nothing is ever removed.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime};

const PREFIX: &str = ".kontext-";
const SUFFIX: &str = ".tmp";
/// Digits of the machine's name.
const MACHINE: usize = 8;
/// Random letters of a name.
const RANDOM: usize = 6;
/// Age from which a leftover of another machine, or of this one before it was started, is removed: some
/// network file systems keep locks to one machine.
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
    builder.prefix(prefix()).suffix(SUFFIX).rand_bytes(RANDOM);
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
        let name = entry.file_name();
        let Some(machine) = name.to_str().and_then(machine_of) else {
            continue;
        };
        let path = entry.path();
        let Some(file) = open_leftover(&path, own) else {
            continue;
        };
        let here = Some(machine) == this_machine();
        if is_dead(lock(&file), here, || is_old(&path)) && is_at(&file, &path) {
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

/// Returns `true` if no program writes to an entry. A lock proves this among the programs of one running
/// system.
fn is_dead(lock: Lock, here: bool, is_old: impl FnOnce() -> bool) -> bool {
    lock == Lock::Taken && (here || is_old())
}

/// Returns `true` if neither an entry nor a file in it was written lately.
fn is_old(path: &Path) -> bool {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut all = entries.map(|entry| entry.path()).chain([path.to_owned()]);
    let modified = |path: PathBuf| path.symlink_metadata()?.modified();
    all.all(|path| {
        let age = modified(path).map(|time| SystemTime::now().duration_since(time));
        matches!(age, Ok(Ok(age)) if age >= OLD)
    })
}

/// Returns the machine in a temporary name; `None` for any other name.
fn machine_of(name: &str) -> Option<&str> {
    let (machine, random) = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('-')?;
    let is_machine = machine.len() == MACHINE && machine.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_random = random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_machine && is_random).then_some(machine)
}

/// Returns the name of the running system: its boot's on Linux; `None` on others.
fn this_machine() -> Option<&'static str> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(MACHINE).collect();
        (digits.len() == MACHINE).then_some(digits)
    };
    BOOT.get_or_init(read).as_deref()
}

fn prefix() -> &'static str {
    static ALL: OnceLock<String> = OnceLock::new();
    let zeros = "0".repeat(MACHINE);
    ALL.get_or_init(|| format!("{PREFIX}{}-", this_machine().unwrap_or(&zeros)))
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
    fn only_a_lock_proves_that_a_writer_is_dead_and_only_on_its_own_machine() {
        for (lock, here, old, dead) in [
            (Lock::Taken, true, false, true),
            (Lock::Taken, false, true, true),
            (Lock::Taken, false, false, false),
            (Lock::HeldByAnother, true, true, false),
            (Lock::Unknown, true, true, false),
            (Lock::Unknown, false, true, false),
        ] {
            assert_eq!(is_dead(lock, here, || old), dead, "{lock:?} {here} {old}");
        }
    }

    #[test]
    fn only_own_names_are_recognised() {
        assert_eq!(machine_of(".kontext-0123abcd-aZ09xy.tmp"), Some("0123abcd"));
        for other in [
            ".kontext-aZ09xy.tmp",
            "kontext-0123abcd-aZ09xy.tmp",
            ".kontext-0123abcd-aZ09xy.tmp.png",
            ".kontext-0123abcg-aZ09xy.tmp",
            ".kontext-0123abcd-a/09xy.tmp",
            ".kontext-0123abcd-aZ09x.tmp",
            ".tmpaZ09xy",
            ".kontext-notes.tmp",
        ] {
            assert_eq!(machine_of(other), None, "{other}");
        }
    }
}
