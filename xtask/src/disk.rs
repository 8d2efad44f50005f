//! Free disk space.

use std::path::Path;

use crate::failure::Failure;
use crate::wheels::Bytes;

/// Returns an error if the disk of `folder` has less than `needed` bytes free for this user.
pub(crate) fn check(folder: &Path, needed: Bytes) -> Result<(), Failure> {
    match free(folder) {
        Some(free) if free < needed => Err(Failure::NoRoom {
            folder: folder.to_path_buf(),
            needed,
            free,
        }),
        // An unknown amount is left to pip, which also notices a full disk, only later.
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn free(folder: &Path) -> Option<Bytes> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(Bytes(disk.f_bavail.saturating_mul(disk.f_frsize)))
}

#[cfg(not(unix))]
fn free(_folder: &Path) -> Option<Bytes> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn no_disk_has_room_for_everything() {
        let folder = std::env::temp_dir();
        let failure = check(&folder, Bytes(u64::MAX)).expect_err("too much");
        assert!(matches!(failure, Failure::NoRoom { .. }), "{failure}");
        assert!(check(&folder, Bytes(0)).is_ok());
    }

    #[test]
    fn a_folder_that_is_not_there_is_left_to_pip() {
        assert!(check(Path::new("/no/such/folder"), Bytes(1)).is_ok());
    }
}
