//! The libtorch of this program: its file and its version.

use std::fmt;
use std::path::{Path, PathBuf};

/// The version that tch 0.24 is made for.
pub const EXPECTED: Version = Version {
    major: 2,
    minor: 11,
    patch: 0,
};

/// File name of the library for CPUs, which every program of this crate is linked to.
pub const CPU_LIBRARY: &str = if cfg!(windows) {
    "torch_cpu.dll"
} else if cfg!(target_os = "macos") {
    "libtorch_cpu.dylib"
} else {
    "libtorch_cpu.so"
};

/// File name of the CUDA half, which is opened at run time.
pub const CUDA_LIBRARY: &str = if cfg!(windows) {
    "torch_cuda.dll"
} else {
    "libtorch_cuda.so"
};

/// A version of libtorch, ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u8,
    /// The second number.
    pub minor: u8,
    /// The third number.
    pub patch: u8,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// Returns the version in a number of libtorch's `TORCH_ABI_VERSION`, a byte for each part from the highest.
    fn of_abi(number: u64) -> Self {
        let [major, minor, patch, ..] = number.to_be_bytes();
        Self { major, minor, patch }
    }
}

/// Returns the version that the loaded libtorch states, or `None` if it states none: it is older than the
/// function for it, linked statically, or on Windows.
///
/// # Example
/// ```
/// use kontext_device::libtorch;
/// # if cfg!(unix) {
/// assert_eq!(libtorch::version(), Some(libtorch::EXPECTED));
/// # }
/// ```
#[must_use]
pub fn version() -> Option<Version> {
    abi_version().map(Version::of_abi)
}

/// Asks libtorch for its version. Source: pytorch v2.11.0 `torch/csrc/inductor/aoti_torch/c/shim.h`,
/// `aoti_torch_abi_version`.
#[cfg(unix)]
#[allow(unsafe_code)]
fn abi_version() -> Option<u64> {
    let program = libloading::os::unix::Library::this();
    // SAFETY: this is the function's type in libtorch's header; it returns a constant, and libtorch is never closed.
    unsafe {
        let version = program.get::<unsafe extern "C" fn() -> u64>(b"aoti_torch_abi_version\0");
        version.ok().map(|version| version())
    }
}

#[cfg(not(unix))]
fn abi_version() -> Option<u64> {
    None
}

/// Returns the file of a library that this program has loaded, by its file name, also with numbers after it
/// (`libcudnn.so` is found as `libcudnn.so.9`). `None` if it is not loaded, or the system is not Linux.
///
/// # Example
/// ```
/// use kontext_device::libtorch;
/// # if cfg!(target_os = "linux") {
/// let file = libtorch::loaded(libtorch::CPU_LIBRARY).expect("linked to it");
/// assert!(file.ends_with("libtorch_cpu.so"));
/// # }
/// assert_eq!(libtorch::loaded("libnone.so"), None);
/// ```
#[must_use]
pub fn loaded(name: &str) -> Option<PathBuf> {
    find(&std::fs::read_to_string("/proc/self/maps").ok()?, name)
}

/// Returns the file of a library in the text of `/proc/self/maps`, whose lines end in paths.
fn find(maps: &str, name: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let is_named = |path: &&str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    paths.into_iter().find(is_named).map(|path| Path::new(path).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_its_number_and_ordered_by_age() {
        let version = Version::of_abi(0x020b_0000_0000_0000);
        assert_eq!((version, version.to_string()), (EXPECTED, "2.11.0".to_owned()));
        assert!(Version::of_abi(0x0209_0100_0000_0000) < EXPECTED);
    }

    #[test]
    fn a_library_is_found_by_its_whole_name_and_its_numbers() {
        let maps = "7f00-7f01 r-xp 00000000 fd:01 12 /opt/my torch/lib/libtorch_cpu.so\n\
                    7f02-7f03 rw-p 00000000 00:00 0\n\
                    7f04-7f05 r--p 00000000 fd:01 13 /usr/lib/libcudnn.so.9.10.2\n";
        assert_eq!(
            find(maps, "libtorch_cpu.so").as_deref(),
            Some(Path::new("/opt/my torch/lib/libtorch_cpu.so"))
        );
        assert_eq!(
            find(maps, "libcudnn.so.9").as_deref(),
            Some(Path::new("/usr/lib/libcudnn.so.9.10.2"))
        );
        assert_eq!(find(maps, "libtorch.so"), None);
        assert_eq!(find(maps, "libtorch"), None);
    }
}
