//! File lock that serialises installations.

use std::fs::File;
use std::path::Path;

use crate::failure::Failure;

/// An exclusive file lock, held until dropped. The system releases it when the process ends, in whichever
/// way, so it never becomes stale.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; if it is held, prints a message and waits.
    pub(crate) fn take(path: &Path) -> Result<Self, Failure> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(Failure::io(path))?;
        lock(&file, path)?;
        Ok(Self { _file: file })
    }
}

#[cfg(unix)]
fn lock(file: &File, path: &Path) -> Result<(), Failure> {
    use rustix::fs::{FlockOperation, flock};
    use rustix::io::{Errno, retry_on_intr};

    let taken = match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            eprintln!("xtask: waiting for another `cargo xtask` that is at the same work");
            retry_on_intr(|| flock(file, FlockOperation::LockExclusive))
        }
        other => other,
    };
    match taken {
        // Some network file systems have no locks; installing without one is better than not at all.
        Ok(()) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK) => Ok(()),
        Err(errno) => Err(Failure::io(path)(errno.into())),
    }
}

/// Does nothing: nothing is installed on such systems, see [`crate::host`].
#[cfg(not(unix))]
fn lock(_file: &File, _path: &Path) -> Result<(), Failure> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn two_holders_never_overlap() {
        let folder = tempfile::tempdir().expect("created");
        let path = folder.path().join("lock");
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let _lock = Lock::take(&path).expect("taken");
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }
}
