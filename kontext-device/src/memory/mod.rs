//! Memory of the host and its devices: free bytes, and the return of freed memory to the system.

mod cgroup;
mod files;
mod host;
mod rlimit;

use std::path::Path;

use kontext_core::{Error, Result, Stage};
use tch::{Device, Kind, Tensor};

use crate::cuda;

/// More bytes than any device has (4 TiB), but few enough that libtorch's allocator does not refuse outright.
const MORE_THAN_ANY: i64 = 1 << 42;

/// Returns the bytes that a device can give to this process: on a CUDA device those that no program holds, on
/// the host the smallest of
/// - the memory that the machine has available, including caches that the system would evict;
/// - on Linux, what the memory limits of its control groups leave (v1 and v2; the own group and all above), where
///   cached files count as free, too;
/// - on Linux, the address space that `ulimit -v` and `ulimit -d` leave, less a reserve of 64 MB.
///
/// Memory that libtorch caches on a CUDA device counts as held; [`give_back_on`] frees it.
///
/// # Errors
/// [`Error::Device`] if a CUDA device is not available or its runtime does not answer. If the system does not report
/// its memory, on Linux [`Error::Io`] (as without `/proc`, or in a process without file descriptors), elsewhere
/// [`Error::Device`].
///
/// # Example
/// ```
/// use kontext_core::Device;
/// use kontext_device::memory;
/// assert!(memory::free(Device::Cpu)? > 0);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn free(device: Device) -> Result<u64> {
    match device {
        Device::Cuda(index) => cuda::free_memory(index),
        Device::Cpu | Device::Mps | Device::Vulkan => host::free(),
    }
}

/// Checks that the limits of the address space (`ulimit -v`, `-d`) leave `bytes` to a stage, next to a reserve of
/// 64 MB: libraries end the program, instead of returning an error, if they cannot allocate a little. Without such a
/// limit, and on systems other than Linux, it returns `Ok`.
///
/// # Errors
/// [`Error::Memory`] otherwise.
///
/// # Example
/// ```
/// use kontext_core::Stage;
/// kontext_device::memory::check_address_space(Stage::Load, 1_000_000)?;
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn check_address_space(stage: Stage, bytes: u64) -> Result<()> {
    let needed = bytes.saturating_add(rlimit::RESERVE);
    match rlimit::left(Path::new("/")) {
        Some(left) if left < needed => Err(Error::Memory {
            stage,
            needed_mb: needed.div_ceil(1_000_000),
            available_mb: left / 1_000_000,
            remedy: "raise the limit of the address space (`ulimit -v`, `ulimit -d`)".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Returns freed memory, which the allocator keeps for later, to the system.
///
/// Loading a part converts and rearranges its weights; the gaps that this leaves in the heap add up to as
/// much as the part itself (0.26 GB for the autoencoder of FLUX.1) and fit few later allocations. Does
/// nothing if the C library is not glibc.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    trim();
}

/// Returns freed memory of a device to the system, as [`give_back`]. On CUDA it synchronises with the device.
pub fn give_back_on(device: Device) {
    if device.is_cuda() {
        // libtorch empties its cache before it reports a shortage, and tch has no other way to request that.
        // Source: pytorch v2.11.0 `c10/cuda/CUDACachingAllocator.cpp`, `DeviceCachingAllocator::malloc`.
        drop(Tensor::f_empty([MORE_THAN_ANY], (Kind::Uint8, device)));
    } else {
        give_back();
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn trim() {
    // SAFETY: it touches only unused pages of the heap, under the allocator's own locks.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_names_it() {
        if crate::device::available(Device::Cuda(9)).is_ok() {
            println!("skipped: this machine has ten CUDA devices");
            return;
        }
        let error = free(Device::Cuda(9)).unwrap_err().to_string();
        assert!(error.starts_with("device cuda:9 is not available: "), "{error}");
    }
}
