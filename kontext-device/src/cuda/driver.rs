//! NVIDIA's driver, asked without libtorch: the CUDA that it runs, and its devices.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;

use kontext_core::{Error, Result};
use libloading::Library;

use crate::device;

/// File name of the driver's library.
const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];
/// Bytes for a device's name; the driver cuts longer ones.
const NAME_LENGTH: usize = 256;

/// `CUresult`; 0 is success.
type Status = c_int;
/// `CUdevice`.
type Handle = c_int;

/// A version of CUDA, ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl CudaVersion {
    /// Returns the version in CUDA's own number, 1000 times the first and 10 times the second.
    pub(crate) fn of_number(number: c_int) -> Self {
        let number = number.unsigned_abs();
        Self {
            major: number / 1000,
            minor: number % 1000 / 10,
        }
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// NVIDIA's driver.
#[derive(Debug, Clone, PartialEq)]
pub struct Driver {
    /// The newest CUDA that it runs.
    pub cuda: CudaVersion,
    /// The devices that this program may use, in CUDA's order.
    pub devices: Vec<DriverDevice>,
}

/// A device, as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverDevice {
    /// Its name: "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Its compute capability, such as (9, 0).
    pub capability: (i32, i32),
    /// Its memory in bytes.
    pub memory: u64,
}

impl Driver {
    /// Asks the driver of this machine; `None` if it has none. Uses no memory of a device.
    ///
    /// # Errors
    /// [`Error::Device`] if there is a driver, but its library cannot be opened or fails.
    ///
    /// # Example
    /// ```
    /// if let Ok(Some(driver)) = kontext_device::cuda::Driver::find() {
    ///     assert!(driver.cuda.major > 0);
    /// }
    /// ```
    pub fn find() -> Result<Option<Self>> {
        if !device::driver_present() {
            return Ok(None);
        }
        let ask = || match open() {
            // Windows has no other sign of a driver.
            Err(_) if cfg!(windows) => Ok(None),
            library => Functions::of(library.map_err(|error| unusable(&error))?)?
                .driver()
                .map(Some),
        };
        ask().map_err(|reason| Error::Device {
            device: "cuda".to_owned(),
            reason,
        })
    }
}

#[allow(unsafe_code)]
fn open() -> Result<Library, libloading::Error> {
    // SAFETY: opening runs the initialisers of the driver's library; libtorch's CUDA half opens it likewise.
    unsafe { Library::new(LIBRARY) }
}

/// Returns the reason of a library that cannot be opened or lacks a function, with the remedy.
fn unusable(error: &libloading::Error) -> String {
    format!(
        "NVIDIA's driver is loaded, but its library cannot be used ({error}); install the driver's libraries, or start \
         the container with the NVIDIA container toolkit (`docker run --gpus all …`)"
    )
}

/// Functions of the driver's library. Source of the signatures: CUDA 13.0 `cuda.h`.
#[derive(Debug)]
struct Functions {
    init: unsafe extern "system" fn(u32) -> Status,
    driver_get_version: unsafe extern "system" fn(*mut c_int) -> Status,
    device_get_count: unsafe extern "system" fn(*mut c_int) -> Status,
    device_get: unsafe extern "system" fn(*mut Handle, c_int) -> Status,
    device_get_name: unsafe extern "system" fn(*mut c_char, c_int, Handle) -> Status,
    device_get_attribute: unsafe extern "system" fn(*mut c_int, c_int, Handle) -> Status,
    device_total_mem: unsafe extern "system" fn(*mut usize, Handle) -> Status,
    get_error_string: unsafe extern "system" fn(Status, *mut *const c_char) -> Status,
}

impl Functions {
    #[allow(unsafe_code)]
    fn of(library: Library) -> Result<Self, String> {
        let absent = |error: libloading::Error| unusable(&error);
        // SAFETY: these are the functions' types in CUDA's header; the library is never closed.
        unsafe {
            let functions = Self {
                init: *library.get(b"cuInit\0").map_err(absent)?,
                driver_get_version: *library.get(b"cuDriverGetVersion\0").map_err(absent)?,
                device_get_count: *library.get(b"cuDeviceGetCount\0").map_err(absent)?,
                device_get: *library.get(b"cuDeviceGet\0").map_err(absent)?,
                device_get_name: *library.get(b"cuDeviceGetName\0").map_err(absent)?,
                device_get_attribute: *library.get(b"cuDeviceGetAttribute\0").map_err(absent)?,
                device_total_mem: *library.get(b"cuDeviceTotalMem_v2\0").map_err(absent)?,
                get_error_string: *library.get(b"cuGetErrorString\0").map_err(absent)?,
            };
            std::mem::forget(library);
            Ok(functions)
        }
    }

    #[allow(unsafe_code)]
    fn driver(&self) -> Result<Driver, String> {
        let (mut version, mut count) = (0, 0);
        // SAFETY: the functions write to variables that outlive the calls.
        unsafe {
            self.check("cuInit", (self.init)(0))?;
            self.check("cuDriverGetVersion", (self.driver_get_version)(&raw mut version))?;
            self.check("cuDeviceGetCount", (self.device_get_count)(&raw mut count))?;
        }
        Ok(Driver {
            cuda: CudaVersion::of_number(version),
            devices: (0..count).map(|index| self.device(index)).collect::<Result<_, _>>()?,
        })
    }

    #[allow(unsafe_code)]
    fn device(&self, index: c_int) -> Result<DriverDevice, String> {
        let (mut handle, mut memory, mut name) = (0, 0, [0_u8; NAME_LENGTH]);
        let mut capability = [0; 2];
        // SAFETY: the functions write to variables that outlive the calls; the name's length is that of its array.
        unsafe {
            self.check("cuDeviceGet", (self.device_get)(&raw mut handle, index))?;
            let written = (self.device_get_name)(name.as_mut_ptr().cast(), NAME_LENGTH as c_int, handle);
            self.check("cuDeviceGetName", written)?;
            for (value, attribute) in capability.iter_mut().zip(CAPABILITY) {
                let status = (self.device_get_attribute)(value, attribute, handle);
                self.check("cuDeviceGetAttribute", status)?;
            }
            self.check("cuDeviceTotalMem", (self.device_total_mem)(&raw mut memory, handle))?;
        }
        let [major, minor] = capability;
        Ok(DriverDevice {
            name: CStr::from_bytes_until_nul(&name)
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            capability: (major, minor),
            memory: memory as u64,
        })
    }

    #[allow(unsafe_code)]
    fn check(&self, function: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut words = std::ptr::null();
        // SAFETY: the function writes null or a static string, never freed.
        let words = unsafe {
            (self.get_error_string)(status, &raw mut words);
            (!words.is_null()).then(|| CStr::from_ptr(words).to_string_lossy())
        };
        let words = words.unwrap_or_default();
        Err(format!(
            "NVIDIA's driver fails: {function}: {words} ({status}); see if `nvidia-smi` works, and restart the machine \
             after an update of the driver"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_its_number_and_ordered_by_age() {
        let version = CudaVersion::of_number(13_000);
        assert_eq!(version.to_string(), "13.0");
        assert_eq!(CudaVersion::of_number(12_080).to_string(), "12.8");
        assert!(CudaVersion::of_number(12_080) < version);
    }

    /// Functions of a driver for CUDA 12.8 with one device, and one that fails.
    #[allow(unsafe_code)]
    mod imitation {
        use super::*;

        extern "system" fn init(flags: u32) -> Status {
            flags.cast_signed()
        }
        unsafe extern "system" fn version(out: *mut c_int) -> Status {
            unsafe { *out = 12_080 };
            0
        }
        unsafe extern "system" fn one(out: *mut c_int) -> Status {
            unsafe { *out = 1 };
            0
        }
        unsafe extern "system" fn handle(out: *mut Handle, index: c_int) -> Status {
            unsafe { *out = 40 + index };
            0
        }
        unsafe extern "system" fn name(out: *mut c_char, length: c_int, handle: Handle) -> Status {
            assert_eq!((length as usize, handle), (NAME_LENGTH, 40));
            unsafe { std::ptr::copy_nonoverlapping(c"NVIDIA L4".as_ptr(), out, 10) };
            0
        }
        unsafe extern "system" fn attribute(out: *mut c_int, attribute: c_int, _: Handle) -> Status {
            unsafe { *out = if attribute == 75 { 8 } else { 9 } };
            0
        }
        unsafe extern "system" fn memory(out: *mut usize, _: Handle) -> Status {
            unsafe { *out = 24 << 30 };
            0
        }
        unsafe extern "system" fn no_memory(_: *mut usize, _: Handle) -> Status {
            999
        }
        unsafe extern "system" fn error(_: Status, out: *mut *const c_char) -> Status {
            unsafe { *out = c"unknown error".as_ptr() };
            0
        }

        pub(super) fn functions() -> Functions {
            Functions {
                init,
                driver_get_version: version,
                device_get_count: one,
                device_get: handle,
                device_get_name: name,
                device_get_attribute: attribute,
                device_total_mem: memory,
                get_error_string: error,
            }
        }

        pub(super) fn failing() -> Functions {
            Functions {
                device_total_mem: no_memory,
                ..functions()
            }
        }
    }

    #[test]
    fn a_driver_is_described_by_its_functions() {
        let l4 = DriverDevice {
            name: "NVIDIA L4".to_owned(),
            capability: (8, 9),
            memory: 24 << 30,
        };
        let driver = imitation::functions().driver().unwrap();
        assert_eq!(driver.cuda.to_string(), "12.8");
        assert_eq!(driver.devices, [l4]);
    }

    #[test]
    fn a_failure_of_the_driver_is_named_with_its_remedy() {
        let error = imitation::failing().driver().unwrap_err();
        assert!(
            error.contains("cuDeviceTotalMem: unknown error (999); see if `nvidia-smi`"),
            "{error}"
        );
    }

    #[test]
    fn a_machine_without_a_driver_has_none() {
        if device::driver_present() {
            println!("skipped: this machine has a driver");
            return;
        }
        assert_eq!(Driver::find().unwrap(), None);
    }

    /// Checks the devices that a driver describes, or the reason without one.
    #[test]
    fn a_driver_describes_its_devices_or_names_what_is_missing() {
        let asked = open().map_err(|error| unusable(&error)).and_then(Functions::of);
        match asked.and_then(|functions| functions.driver()) {
            Ok(driver) => {
                assert!(driver.cuda.major >= 9, "{driver:?}");
                for device in driver.devices {
                    assert!(!device.name.is_empty() && device.memory > 1 << 28 && device.capability.0 >= 3);
                }
            }
            Err(reason) => assert!(reason.contains("driver") && reason.contains(';'), "{reason}"),
        }
    }
}
