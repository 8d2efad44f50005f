//! Compiled code of a GPU, and launches of it on libtorch's stream.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

use kontext_core::Result;

use super::runtime::Status;
use super::stream::{self, StreamHandle, failed};

/// `cudaLibrary_t`, a handle of the runtime that any thread may use.
type LibraryHandle = *mut c_void;
/// `cudaKernel_t`, likewise; `cudaLaunchKernel` takes one for a function.
type KernelHandle = *mut c_void;

/// `dim3`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Dim3 {
    x: c_uint,
    y: c_uint,
    z: c_uint,
}

impl Dim3 {
    fn of([x, y, z]: [u32; 3]) -> Self {
        Self { x, y, z }
    }
}

/// Functions of the runtime for code. Source: CUDA 13.0 `cuda_runtime_api.h`.
#[derive(Debug, Clone, Copy)]
struct Functions {
    load_data: unsafe extern "C" fn(
        *mut LibraryHandle,
        *const c_void,
        *mut c_int,
        *mut *mut c_void,
        c_uint,
        *mut c_int,
        *mut *mut c_void,
        c_uint,
    ) -> Status,
    unload: unsafe extern "C" fn(LibraryHandle) -> Status,
    get_kernel: unsafe extern "C" fn(*mut KernelHandle, LibraryHandle, *const c_char) -> Status,
    launch: unsafe extern "C" fn(*const c_void, Dim3, Dim3, *mut *mut c_void, usize, StreamHandle) -> Status,
}

impl Functions {
    #[cfg(unix)]
    #[allow(unsafe_code)]
    fn find() -> Result<Self, String> {
        let all = libloading::os::unix::Library::this();
        let absent = |error: libloading::Error| format!("a function of CUDA is missing ({error})");
        // SAFETY: these are the functions' types in the header named above; their library was opened for libtorch and
        // is never closed.
        unsafe {
            Ok(Self {
                load_data: *all.get(b"cudaLibraryLoadData\0").map_err(absent)?,
                unload: *all.get(b"cudaLibraryUnload\0").map_err(absent)?,
                get_kernel: *all.get(b"cudaLibraryGetKernel\0").map_err(absent)?,
                launch: *all.get(b"cudaLaunchKernel\0").map_err(absent)?,
            })
        }
    }

    #[cfg(not(unix))]
    fn find() -> Result<Self, String> {
        Err("code is loaded on Unix only".to_owned())
    }
}

/// Code that is loaded for a device, unloaded when this value and all of its functions are dropped.
#[derive(Debug, Clone)]
pub struct Code(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    functions: Functions,
    library: LibraryHandle,
    index: c_int,
}

// SAFETY: the library is a handle of the runtime that any thread may use.
#[allow(unsafe_code)]
unsafe impl Send for Loaded {}
// SAFETY: likewise, from several threads at once.
#[allow(unsafe_code)]
unsafe impl Sync for Loaded {}

/// A kernel of loaded code.
#[derive(Debug, Clone)]
pub struct Function {
    code: Code,
    kernel: KernelHandle,
}

// SAFETY: the kernel is a handle of the runtime that any thread may use.
#[allow(unsafe_code)]
unsafe impl Send for Function {}
// SAFETY: likewise, from several threads at once.
#[allow(unsafe_code)]
unsafe impl Sync for Function {}

impl Code {
    /// Loads code (a cubin) for a device. The runtime reads all that it needs of `image` before the call
    /// returns.
    ///
    /// # Safety
    /// `image` is a whole cubin, as a compiler of CUDA made it: the runtime trusts the sizes in it.
    ///
    /// # Errors
    /// [`kontext_core::Error::Device`] if libtorch's CUDA half is not loaded, or the runtime refuses the
    /// code.
    #[allow(unsafe_code)]
    pub unsafe fn load(index: usize, image: &[u8]) -> Result<Self> {
        let index = c_int::try_from(index).map_err(|error| failed(c_int::MAX, error.to_string()))?;
        let runtime = stream::functions().map_err(|reason| failed(index, reason.to_owned()))?;
        let functions = Functions::find().map_err(|reason| failed(index, reason))?;
        let (mut library, none) = (ptr::null_mut(), ptr::null_mut::<c_int>());
        let no_values = ptr::null_mut::<*mut c_void>();
        // SAFETY: the image is what the caller promises; without options, their pointers are null.
        let status = unsafe {
            (functions.load_data)(
                &raw mut library,
                image.as_ptr().cast(),
                none,
                no_values,
                0,
                none,
                no_values,
                0,
            )
        };
        runtime.check(index, "cudaLibraryLoadData", status)?;
        Ok(Self(Arc::new(Loaded {
            functions,
            library,
            index,
        })))
    }

    /// Returns the kernel of this name.
    ///
    /// # Errors
    /// [`kontext_core::Error::Device`] if the code has none, or it is not for this device.
    #[allow(unsafe_code)]
    pub fn function(&self, name: &CStr) -> Result<Function> {
        let loaded = &self.0;
        let runtime = stream::functions().map_err(|reason| failed(loaded.index, reason.to_owned()))?;
        let mut kernel = ptr::null_mut();
        // SAFETY: the library is alive, the name ends in a zero.
        let status = unsafe { (loaded.functions.get_kernel)(&raw mut kernel, loaded.library, name.as_ptr()) };
        runtime.check(loaded.index, "cudaLibraryGetKernel", status)?;
        Ok(Function {
            code: self.clone(),
            kernel,
        })
    }
}

impl Function {
    /// Queues the kernel on libtorch's current stream of this thread. `arguments` are pointers to their
    /// values, which are copied before the call returns.
    ///
    /// # Safety
    /// The arguments are those of the kernel's parameters, in number and type. What the kernel does with them
    /// is valid: memory that it uses is the device's, and is neither freed nor used by other streams before
    /// the work is done.
    ///
    /// # Errors
    /// [`kontext_core::Error::Device`] if the runtime refuses the launch.
    #[allow(unsafe_code)]
    pub unsafe fn launch(&self, grid: [u32; 3], block: [u32; 3], arguments: &mut [*mut c_void]) -> Result<()> {
        let loaded = &self.code.0;
        let runtime = stream::functions().map_err(|reason| failed(loaded.index, reason.to_owned()))?;
        runtime.on_device(loaded.index, || {
            let stream = runtime.stream_of_libtorch(loaded.index)?;
            // SAFETY: the kernel is alive with its code; the arguments are what the caller promises.
            let status = unsafe {
                (loaded.functions.launch)(
                    self.kernel.cast_const(),
                    Dim3::of(grid),
                    Dim3::of(block),
                    arguments.as_mut_ptr(),
                    0,
                    stream,
                )
            };
            runtime.check(loaded.index, "cudaLaunchKernel", status)
        })
    }
}

impl Drop for Loaded {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the library is owned by this value, and none of its kernels is left. Errors cannot be reported here.
        unsafe {
            (self.functions.unload)(self.library);
        }
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::Error;

    use super::*;
    use crate::device;

    /// With libtorch's CUDA half, the runtime refuses what is no code; on a machine without a driver, for that reason.
    #[test]
    #[allow(unsafe_code)]
    fn without_code_or_a_driver_or_libtorchs_cuda_half_the_reason_is_named() {
        let reason = match device::open_cuda() {
            Ok(()) => "cudaLibraryLoadData failed: ",
            Err(_) => "is missing",
        };
        // SAFETY: the runtime reads the first bytes only, in which it finds no mark of code.
        let error = unsafe { Code::load(0, &[0; 256]) }.unwrap_err();
        assert!(
            matches!(&error, Error::Device { device, .. } if device == "cuda:0"),
            "{error}"
        );
        println!("{error}");
        let error = error.to_string();
        assert!(error.contains(reason) || error.contains("lacks a function"), "{error}");
    }
}
