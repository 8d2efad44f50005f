//! Free memory of the host, within the limits of this process.

use std::io;
use std::path::Path;

use kontext_core::{Error, Result};
use sysinfo::System;

use super::{cgroup, rlimit};

/// Returns the bytes that this process can still take.
pub(super) fn free() -> Result<u64> {
    smallest(Path::new("/"), available()).ok_or_else(unknown)
}

/// Creates the error of a system that does not report its memory.
fn unknown() -> Error {
    if cfg!(target_os = "linux") {
        let reason = "it reports no memory; mount /proc, or close some files";
        return Error::io("/proc/meminfo")(io::Error::other(reason));
    }
    Error::Device {
        device: "cpu".to_owned(),
        reason: "the system does not report its memory; check that a sandbox does not forbid to ask for it".to_owned(),
    }
}

/// Returns the machine's available memory; `None` if the system does not report it.
fn available() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    // A file that cannot be read leaves zeros.
    (system.total_memory() > 0).then(|| system.available_memory())
}

/// Returns the smallest of the machine's available memory and what the limits leave.
fn smallest(root: &Path, available: Option<u64>) -> Option<u64> {
    let limits = [cgroup::free(root), rlimit::free(root)];
    limits.into_iter().chain([available]).flatten().min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // In helper functions of a test.

    use super::*;

    #[test]
    fn memory_that_the_machine_does_not_report_is_that_of_the_limits_or_unknown() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(smallest(root.path(), None), None);
        assert_eq!(smallest(root.path(), Some(7)), Some(7));
        let group = root.path().join("sys/fs/cgroup");
        for folder in [&group, &root.path().join("proc/self")] {
            kontext_core::create_folder(folder).unwrap();
        }
        std::fs::write(root.path().join("proc/self/cgroup"), "0::/\n").unwrap();
        std::fs::write(group.join("memory.max"), "1000\n").unwrap();
        std::fs::write(group.join("memory.current"), "900\n").unwrap();
        assert_eq!(smallest(root.path(), None), Some(100));
        assert_eq!(smallest(root.path(), Some(7)), Some(7));
    }

    #[test]
    fn this_machine_reports_its_memory() {
        let mut system = System::new();
        system.refresh_memory();
        // Other programs take and free some between two readings.
        assert!((1..=system.total_memory()).contains(&available().unwrap()));
        assert!(free().unwrap() <= system.total_memory());
    }
}
