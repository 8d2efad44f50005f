//! Devices: parsing their names, and loading libtorch's CUDA half at run time.
//!
//! The linker drops `libtorch_cuda` because the program names none of its symbols, so a program linked in the
//! usual way reports that CUDA is not available. Here the library is loaded when CUDA is requested: one
//! program serves machines with and without CUDA.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kontext_core::{Error, Result};
use tch::{Cuda, Device};

use crate::libtorch;

/// Parses "cpu", "cuda" or "cuda:N" and checks that the device is available.
///
/// # Errors
/// [`Error::InvalidArgument`] for any other text, [`Error::Device`] if the device is not available.
///
/// # Example
/// ```
/// use kontext_device::device;
/// use kontext_core::Device;
/// assert_eq!(device::parse("cpu")?, Device::Cpu);
/// assert!(device::parse("gpu").unwrap_err().to_string().contains("cpu, cuda or cuda:N"));
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn parse(text: &str) -> Result<Device> {
    let device = match text.split_once(':') {
        None if text == "cpu" => Device::Cpu,
        None if text == "cuda" => Device::Cuda(0),
        Some(("cuda", index)) if index.parse::<u16>().is_ok() => Device::Cuda(index.parse().unwrap_or_default()),
        _ => return Err(Error::invalid("device", "cpu, cuda or cuda:N", text)),
    };
    available(device)?;
    Ok(device)
}

/// Returns the best device of this machine: the first CUDA device, otherwise the CPU.
#[must_use]
pub fn best() -> Device {
    if driver_present() && available(Device::Cuda(0)).is_ok() {
        Device::Cuda(0)
    } else {
        Device::Cpu
    }
}

/// Checks that a device is available.
///
/// # Errors
/// [`Error::Device`] with the cause: no CUDA libraries, no driver, or no such index.
pub fn available(device: Device) -> Result<()> {
    let Device::Cuda(index) = device else { return Ok(()) };
    let unavailable = |reason: String| Error::Device {
        device: format!("cuda:{index}"),
        reason,
    };
    if !driver_present() {
        return Err(unavailable(
            "this machine has no NVIDIA driver; use the device cpu".to_owned(),
        ));
    }
    open_cuda().as_ref().map_err(|e| unavailable(e.clone()))?;
    let count = Cuda::device_count();
    match usize::try_from(count) {
        Ok(count) if index < count => Ok(()),
        Ok(count) if count > 0 => Err(unavailable(format!("there are {count} CUDA devices, numbered from 0"))),
        _ => Err(unavailable(
            "libtorch finds no CUDA device; the driver may be older than CUDA 13 asks for".to_owned(),
        )),
    }
}

/// Returns `true` if an NVIDIA driver is loaded, judging by the device files it creates.
pub(crate) fn driver_present() -> bool {
    const SIGNS: [&str; 3] = ["/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg"];
    SIGNS.iter().any(|sign| Path::new(sign).exists()) || cfg!(windows)
}

/// Loads libtorch's CUDA library once. This must precede the first call to [`Cuda`]: libtorch caches its
/// answer, also one given without the library.
pub(crate) fn open_cuda() -> &'static Result<(), String> {
    static OPENED: OnceLock<Result<(), String>> = OnceLock::new();
    OPENED.get_or_init(|| {
        let mut errors = Vec::new();
        for path in candidates() {
            match open_global(&path) {
                Ok(()) => return Ok(()),
                Err(error) => errors.push(error),
            }
        }
        let cause = errors.into_iter().next_back().unwrap_or_default();
        Err(format!("this libtorch has no usable CUDA half ({cause}); in the repository, `cargo xtask --cuda libtorch` installs one"))
    })
}

/// Returns the candidate paths: by name (found through the program's rpath), then next to the libtorch
/// already loaded.
fn candidates() -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from(libtorch::CUDA_LIBRARY)];
    paths.extend(libtorch::loaded(libtorch::CPU_LIBRARY).map(|file| file.with_file_name(libtorch::CUDA_LIBRARY)));
    paths
}

#[cfg(unix)]
#[allow(unsafe_code)]
fn open_global(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: opening runs libtorch_cuda's initialisers, which register its kernels; it is the
    // other half of the libtorch that this program is linked to, and is never closed.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| e.to_string())?;
    std::mem::forget(library);
    Ok(())
}

#[cfg(not(unix))]
#[allow(unsafe_code)]
fn open_global(path: &Path) -> Result<(), String> {
    // SAFETY: as on Unix.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
    std::mem::forget(library);
    Ok(())
}
