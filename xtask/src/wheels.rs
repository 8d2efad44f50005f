//! The wheels that make up libtorch, and their sizes.

use std::fmt;

/// Version of libtorch that the workspace's `tch` is generated for; its build script refuses any other.
pub(crate) const TORCH_VERSION: &str = "2.11.0";

/// Extent of a libtorch installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// The minimum for a CPU: torch, and the two NVIDIA libraries that `libtorch_cpu.so` itself links to.
    Cpu,
    /// Additionally all libraries loaded by `libtorch_cuda.so`. Also works on a CPU.
    Cuda,
}

/// A package on PyPI.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// Name and version, as pip takes them.
    pub(crate) requirement: &'static str,
    /// A library of the package, relative to the installation folder, that proves its presence.
    pub(crate) library: &'static str,
}

/// torch 2.11.0 and its NVIDIA dependencies, as `pip install torch==2.11.0` resolves them (Triton and the
/// pure Python packages serve torch's Python side only). Source: `Requires-Dist` of the wheels torch 2.11.0
/// and cuda-toolkit 13.0.2. [`Wheel::library`] of torch is for Linux; see [`crate::home`] for macOS.
const WHEELS: [Wheel; 16] = [
    wheel("torch==2.11.0", "torch/lib/libtorch_cuda.so"),
    wheel("nvidia-cuda-runtime==13.0.96", "nvidia/cu13/lib/libcudart.so.13"),
    wheel("nvidia-cuda-cupti==13.0.85", "nvidia/cu13/lib/libcupti.so.13"),
    wheel("nvidia-cublas==13.1.0.3", "nvidia/cu13/lib/libcublas.so.13"),
    NVRTC,
    wheel("nvidia-cudnn-cu13==9.19.0.56", "nvidia/cudnn/lib/libcudnn.so.9"),
    wheel("nvidia-cufft==12.0.0.61", "nvidia/cu13/lib/libcufft.so.12"),
    wheel("nvidia-cufile==1.15.1.6", "nvidia/cu13/lib/libcufile.so.0"),
    wheel("nvidia-curand==10.4.0.35", "nvidia/cu13/lib/libcurand.so.10"),
    wheel("nvidia-cusolver==12.0.4.66", "nvidia/cu13/lib/libcusolver.so.12"),
    wheel("nvidia-cusparse==12.6.3.3", "nvidia/cu13/lib/libcusparse.so.12"),
    wheel(
        "nvidia-cusparselt-cu13==0.8.0",
        "nvidia/cusparselt/lib/libcusparseLt.so.0",
    ),
    wheel("nvidia-nccl-cu13==2.28.9", "nvidia/nccl/lib/libnccl.so.2"),
    wheel("nvidia-nvjitlink==13.0.88", "nvidia/cu13/lib/libnvJitLink.so.13"),
    wheel("nvidia-nvshmem-cu13==3.4.5", "nvidia/nvshmem/lib/libnvshmem_host.so.3"),
    wheel("nvidia-nvtx==13.0.85", "nvidia/cu13/lib/libnvtx3interop.so.1"),
];

/// The compiler of CUDA kernels at run time.
pub(crate) const NVRTC: Wheel = wheel("nvidia-cuda-nvrtc==13.0.88", "nvidia/cu13/lib/libnvrtc.so.13");

const fn wheel(requirement: &'static str, library: &'static str) -> Wheel {
    Wheel { requirement, library }
}

impl Variant {
    /// Returns the wheels to install on `os` (as [`std::env::consts::OS`] names it); those for macOS have no
    /// NVIDIA parts.
    pub(crate) fn wheels(self, os: &str) -> &'static [Wheel] {
        let count = match self {
            _ if os == "macos" => 1,
            Self::Cpu => 3,
            Self::Cuda => WHEELS.len(),
        };
        WHEELS.get(..count).unwrap_or(&WHEELS)
    }

    /// Returns the sizes, measured with the wheels for Linux on x86-64, the largest ones.
    pub(crate) fn sizes(self) -> Sizes {
        match self {
            Self::Cpu => Sizes {
                download: Bytes(544_000_000),
                installed: Bytes(1_220_000_000),
            },
            Self::Cuda => Sizes {
                download: Bytes(2_512_000_000),
                installed: Bytes(4_010_000_000),
            },
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "for CPUs",
            Self::Cuda => "with CUDA",
        })
    }
}

/// Sizes of a variant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) download: Bytes,
    pub(crate) installed: Bytes,
}

impl Sizes {
    /// Returns the disk space required during installation, in whole tenths of a GB: pip keeps the wheels
    /// until all of them are unpacked.
    pub(crate) fn needed(self) -> Bytes {
        Bytes((self.download.0 + self.installed.0).next_multiple_of(TENTH))
    }
}

/// Rounding unit for display: a tenth of a GB.
const TENTH: u64 = 100_000_000;

/// A number of bytes on disk, displayed in GB (1e9 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = self.0.saturating_add(TENTH / 2) / TENTH;
        write!(f, "{}.{} GB", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_variant_is_torch_and_the_two_libraries_it_is_linked_to() {
        let names: Vec<_> = Variant::Cpu.wheels("linux").iter().map(|w| w.requirement).collect();
        assert_eq!(
            names,
            [
                "torch==2.11.0",
                "nvidia-cuda-runtime==13.0.96",
                "nvidia-cuda-cupti==13.0.85"
            ]
        );
    }

    #[test]
    fn macos_takes_torch_alone() {
        let names: Vec<_> = Variant::Cpu.wheels("macos").iter().map(|w| w.requirement).collect();
        assert_eq!(names, ["torch==2.11.0"]);
    }

    #[test]
    fn every_wheel_is_pinned_and_torch_is_the_version_of_tch() {
        for wheel in Variant::Cuda.wheels("linux") {
            assert!(wheel.requirement.contains("=="), "{}", wheel.requirement);
        }
        assert_eq!(WHEELS[0].requirement, format!("torch=={TORCH_VERSION}"));
    }

    #[test]
    fn sizes_are_shown_in_tenths_of_gigabytes() {
        assert_eq!(Bytes(0).to_string(), "0.0 GB");
        assert_eq!(Bytes(1_220_000_000).to_string(), "1.2 GB");
        assert_eq!(Bytes(1_250_000_000).to_string(), "1.3 GB");
        assert_eq!(Variant::Cpu.sizes().needed().to_string(), "1.8 GB");
        assert_eq!(Variant::Cuda.sizes().needed().to_string(), "6.6 GB");
    }
}
