//! The host machine: support by PyPI's libtorch wheels, and the NVIDIA driver for the CUDA variant.

use std::fs;
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::wheels::Variant;

/// The first branch of NVIDIA's driver that runs CUDA 13, which torch 2.11.0 on PyPI is built for.
/// Source: NVIDIA, CUDA compatibility, "minimum required driver".
const CUDA_13_DRIVER: u32 = 580;

/// State of NVIDIA's driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Absent,
    /// Loaded, but of an older branch than CUDA 13 needs.
    Old(u32),
    Ready,
}

impl Driver {
    pub(crate) fn find() -> Self {
        // On Linux the kernel module reports the version; under WSL Windows has the driver, and only the tool
        // does.
        let told = fs::read_to_string("/proc/driver/nvidia/version").ok().or_else(|| {
            let output = Command::new("nvidia-smi")
                .args(["--query-gpu=driver_version", "--format=csv,noheader"])
                .stdin(Stdio::null())
                .output()
                .ok()?;
            output
                .status
                .success()
                .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        });
        told.map_or(Self::Absent, |text| Self::read(&text))
    }

    /// Parses the text of `/proc/driver/nvidia/version` or `nvidia-smi`: the first word like `580.65.06`.
    fn read(text: &str) -> Self {
        let branch = text.split_whitespace().find_map(|word| {
            let mut numbers = word.split('.').map(str::parse::<u32>);
            let branch = numbers.next()?.ok()?;
            let mut rest = numbers.peekable();
            (rest.peek().is_some() && rest.all(|number| number.is_ok())).then_some(branch)
        });
        match branch {
            Some(branch) if branch < CUDA_13_DRIVER => Self::Old(branch),
            _ => Self::Ready,
        }
    }
}

/// Returns an error if libtorch, or the variant `asked` for, has no wheels for this machine. `os` and `arch`
/// are those of [`std::env::consts`]; `musl` is `true` if libc is musl.
pub(crate) fn check(os: &str, arch: &str, musl: bool, asked: Option<Variant>) -> Result<(), Failure> {
    let os = if musl { format!("{os} with musl") } else { os.to_owned() };
    match (os.as_str(), arch) {
        ("macos", "aarch64") if asked == Some(Variant::Cuda) => Err(Failure::NoCuda { os }),
        ("linux", "x86_64" | "aarch64") | ("macos", "aarch64") => Ok(()),
        _ => Err(Failure::Platform {
            os,
            arch: arch.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_branch_is_read_from_the_kernel_module() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n\
                      GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n";
        assert_eq!(Driver::read(closed), Driver::Old(535));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n";
        assert_eq!(Driver::read(open), Driver::Ready);
    }

    #[test]
    fn the_drivers_branch_is_read_from_nvidia_smi() {
        assert_eq!(Driver::read("590.44\n590.44\n"), Driver::Ready);
        assert_eq!(Driver::read("470.256.02\n"), Driver::Old(470));
    }

    #[test]
    fn a_driver_of_unknown_version_is_taken_for_a_new_one() {
        assert_eq!(Driver::read("something else"), Driver::Ready);
    }

    #[test]
    fn pypi_serves_linux_and_apple_silicon() {
        assert!(check("linux", "x86_64", false, Some(Variant::Cuda)).is_ok());
        assert!(check("linux", "aarch64", false, None).is_ok());
        assert!(check("macos", "aarch64", false, None).is_ok());
    }

    #[test]
    fn other_systems_are_refused_by_name() {
        for (os, arch, musl) in [
            ("windows", "x86_64", false),
            ("macos", "x86_64", false),
            ("linux", "x86_64", true),
        ] {
            let failure = check(os, arch, musl, None).expect_err("unsupported");
            assert!(failure.to_string().contains(os), "{failure}");
        }
    }

    #[test]
    fn cuda_is_refused_on_macos() {
        let failure = check("macos", "aarch64", false, Some(Variant::Cuda)).expect_err("no CUDA");
        assert!(matches!(failure, Failure::NoCuda { .. }), "{failure}");
    }
}
