//! Memory of the machine and of its devices: what is free, and giving back what was freed.

use sysinfo::System;
use tch::{Device, Kind, Tensor};

use crate::{Result, cuda};

/// More bytes than any device has (4 TiB), and less than the allocator of libtorch refuses unseen.
const MORE_THAN_ANY: i64 = 1 << 42;

/// Bytes that a device can give to a program: of a CUDA device those that no program holds, of this machine also caches
/// that it would give up.
///
/// What libtorch keeps of a CUDA device for later counts as held; [`give_back_on`] sets it free.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) where a CUDA device is not there or its runtime does not tell.
///
/// # Example
/// ```
/// use kontext_core::{Device, memory};
/// assert!(memory::free(Device::Cpu)? > 0);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn free(device: Device) -> Result<u64> {
    match device {
        Device::Cuda(index) => cuda::free_memory(index),
        Device::Cpu | Device::Mps | Device::Vulkan => Ok(free_on_host()),
    }
}

fn free_on_host() -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    system.available_memory().min(limit)
}

/// Gives memory that the program has freed back to the system, where the allocator keeps it for later.
///
/// Loading a part converts and rearranges its weights; the gaps that this leaves in the heap add up to as much as the part
/// itself (0.26 GB for the autoencoder of FLUX.1) and fit little that comes later. Does nothing where the C library
/// is not glibc.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    trim();
}

/// As [`give_back`], for the memory of a device. On CUDA it waits for the device.
pub fn give_back_on(device: Device) {
    if device.is_cuda() {
        // libtorch empties its cache before it tells that there is too little, and tch has no other way to ask for
        // that. Source: pytorch v2.11.0 `c10/cuda/CUDACachingAllocator.cpp`, `DeviceCachingAllocator::malloc`.
        drop(Tensor::f_empty([MORE_THAN_ANY], (Kind::Uint8, device)));
    } else {
        give_back();
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn trim() {
    // SAFETY: it touches only pages of the heap that hold nothing, under the allocator's own locks.
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
