//! Functions of the CUDA runtime: devices, free memory, and error texts.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;
use std::thread;

use kontext_core::{Error, Result};
use tch::Device;

use super::driver::CudaVersion;
use crate::device;

/// `cudaError_t`; 0 is success.
pub(super) type Status = c_int;

/// Functions of the runtime, which stays loaded as long as the program runs.
#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) set_device: unsafe extern "C" fn(c_int) -> Status,
    mem_get_info: unsafe extern "C" fn(*mut usize, *mut usize) -> Status,
    runtime_get_version: unsafe extern "C" fn(*mut c_int) -> Status,
    get_error_string: unsafe extern "C" fn(Status) -> *const c_char,
}

/// Returns the free memory of a CUDA device in bytes.
///
/// # Errors
/// [`Error::Device`] if the device or a function of the runtime is missing, or the runtime fails.
pub(crate) fn free_memory(index: usize) -> Result<u64> {
    let error = |reason: String| Error::Device {
        device: format!("cuda:{index}"),
        reason,
    };
    device::available(Device::Cuda(index))?;
    let runtime = runtime().map_err(|reason| error(reason.to_owned()))?;
    // The runtime's current device is per thread: on another thread, libtorch's stays as it is.
    let asked = thread::scope(|scope| scope.spawn(|| runtime.free_memory(index)).join());
    asked
        .unwrap_or_else(|_| Err("the question for its free memory was broken off".to_owned()))
        .map_err(error)
}

/// Returns the version of CUDA that libtorch's CUDA half was built for. Opens that half.
///
/// # Errors
/// [`Error::Device`] if the half or a function of the runtime is missing.
pub fn runtime_version() -> Result<CudaVersion> {
    let version = || {
        device::open_cuda().as_ref().map_err(Clone::clone)?;
        runtime()?.version()
    };
    version().map_err(|reason: String| Error::Device {
        device: "cuda".to_owned(),
        reason,
    })
}

/// Returns the runtime of this program, once libtorch's CUDA half is loaded.
fn runtime() -> Result<&'static Runtime, &'static str> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    RUNTIME.get_or_init(find).as_ref().map_err(String::as_str)
}

/// Looks up the functions among the program's global symbols, which include those of libtorch's CUDA half and
/// of its dependencies.
#[cfg(unix)]
fn find() -> Result<Runtime, String> {
    Runtime::of(&libloading::os::unix::Library::this())
}

#[cfg(not(unix))]
fn find() -> Result<Runtime, String> {
    Err("its free memory is asked for on Unix alone; name a placement".to_owned())
}

impl Runtime {
    #[cfg(unix)]
    #[allow(unsafe_code)]
    pub(super) fn of(library: &libloading::os::unix::Library) -> Result<Self, String> {
        let absent = |error: libloading::Error| {
            format!(
                "the CUDA runtime that libtorch has loaded lacks a function ({error}); take libtorch's CUDA 13 build"
            )
        };
        // SAFETY: these are the functions' types in CUDA's header; the library that they are in was opened
        // for libtorch and is never closed.
        unsafe {
            Ok(Self {
                set_device: *library.get(b"cudaSetDevice\0").map_err(absent)?,
                mem_get_info: *library.get(b"cudaMemGetInfo\0").map_err(absent)?,
                runtime_get_version: *library.get(b"cudaRuntimeGetVersion\0").map_err(absent)?,
                get_error_string: *library.get(b"cudaGetErrorString\0").map_err(absent)?,
            })
        }
    }

    /// Returns the free memory of a device in bytes. Leaves it as the thread's current device.
    #[allow(unsafe_code)]
    fn free_memory(&self, index: usize) -> Result<u64, String> {
        let device = c_int::try_from(index).map_err(|error| error.to_string())?;
        let (mut free, mut total) = (0_usize, 0_usize);
        // SAFETY: the first takes only a number, the second writes to two variables that outlive the call.
        unsafe {
            self.check("cudaSetDevice", (self.set_device)(device))?;
            self.check("cudaMemGetInfo", (self.mem_get_info)(&raw mut free, &raw mut total))?;
        }
        Ok(free as u64)
    }

    #[allow(unsafe_code)]
    fn version(&self) -> Result<CudaVersion, String> {
        let mut version = 0;
        // SAFETY: it writes to a variable that outlives the call.
        let status = unsafe { (self.runtime_get_version)(&raw mut version) };
        self.check("cudaRuntimeGetVersion", status)?;
        Ok(CudaVersion::of_number(version))
    }

    #[allow(unsafe_code)]
    pub(super) fn check(&self, function: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: for any number, the runtime returns a static string, never freed.
        let words = unsafe {
            let words = (self.get_error_string)(status);
            if words.is_null() {
                None
            } else {
                Some(CStr::from_ptr(words).to_string_lossy())
            }
        };
        Err(format!("{function} failed: {} ({status})", words.unwrap_or_default()))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use libloading::os::unix::Library;

    use super::*;

    #[test]
    fn a_program_without_the_runtime_is_told_which_function_is_missing() {
        if find().is_ok() {
            println!("skipped: this test's libtorch has its CUDA half loaded");
            return;
        }
        assert!(find().unwrap_err().contains("cudaSetDevice"), "{:?}", find());
    }

    /// Checks the real runtime, which returns an error on a machine without a GPU.
    #[test]
    #[allow(unsafe_code)]
    fn the_runtime_tells_the_free_memory_or_says_why_not() {
        let beside_libtorch = std::env::var("LIBTORCH").unwrap_or_else(|_| "../.libtorch/torch".to_owned());
        let path = format!("{beside_libtorch}/../nvidia/cu13/lib/libcudart.so.13");
        // SAFETY: the runtime has no initialisers that depend on the program.
        let Ok(library) = (unsafe { Library::open(Some(&path), libloading::os::unix::RTLD_NOW) }) else {
            println!("skipped: there is no {path}");
            return;
        };
        let runtime = Runtime::of(&library).unwrap();
        assert_eq!(runtime.version().unwrap().to_string(), "13.0");
        match thread::spawn(move || runtime.free_memory(0)).join().unwrap() {
            Ok(free) => assert!(free > 0),
            Err(reason) => {
                assert!(
                    reason.starts_with("cudaSetDevice failed: ") && reason.contains("CUDA"),
                    "{reason}"
                );
            }
        }
        std::mem::forget(library);
    }
}
