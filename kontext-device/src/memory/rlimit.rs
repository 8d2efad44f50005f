//! Address space that the resource limits of this process leave (`ulimit -v`, `ulimit -d`).
//!
//! Source: proc(5), `/proc/pid/limits` and `/proc/pid/status`.

use std::path::Path;

use super::files::{number_after, read};

/// Limits, and the sizes in kB that the kernel compares with them.
const LIMITS: [(&str, &str); 2] = [("Max address space", "VmSize"), ("Max data size", "VmData")];

/// Bytes that stay free: libraries end the program if they cannot allocate a little, such as oneDNN the code that it
/// compiles for a CPU (it calls a null pointer), and the allocator reserves address space that it does not use.
pub(super) const RESERVE: u64 = 64_000_000;

/// Returns the bytes that the smaller of the two limits leaves, less [`RESERVE`]; `None` without a limit. `root` is
/// the root of the file system, `/` but for tests.
pub(super) fn free(root: &Path) -> Option<u64> {
    left(root).map(|left| left.saturating_sub(RESERVE))
}

/// Returns the bytes that the smaller of the two limits leaves, as [`free`], with the reserve.
pub(super) fn left(root: &Path) -> Option<u64> {
    let limits = read(&root.join("proc/self/limits"))?;
    let status = read(&root.join("proc/self/status"))?;
    let left = LIMITS.iter().filter_map(|(limit, taken)| {
        let taken = number_after(&status, taken)?.saturating_mul(1024);
        Some(number_after(&limits, limit)?.saturating_sub(taken))
    });
    left.min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // In helper functions of a test.

    use super::*;

    fn free_with(space: &str, data: &str) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("proc/self");
        kontext_core::create_folder(&folder).unwrap();
        let limits = format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max data size             {data:<20} unlimited            bytes     \n\
             Max address space         {space:<20} unlimited            bytes     \n"
        );
        std::fs::write(folder.join("limits"), limits).unwrap();
        std::fs::write(
            folder.join("status"),
            "Name:\tedit\nVmSize:\t  200000 kB\nVmData:\t    1000 kB\n",
        )
        .unwrap();
        free(root.path())
    }

    #[test]
    fn the_smaller_of_both_limits_less_what_is_taken_is_free() {
        assert_eq!(free_with("unlimited", "unlimited"), None);
        assert_eq!(
            free_with("300000000", "unlimited"),
            Some(300_000_000 - 204_800_000 - RESERVE)
        );
        assert_eq!(free_with("300000000", "66024000"), Some(1_000_000));
        assert_eq!(free_with("1000", "unlimited"), Some(0));
    }

    #[test]
    fn a_system_without_these_files_has_no_limit() {
        assert_eq!(free(tempfile::tempdir().unwrap().path()), None);
    }
}
