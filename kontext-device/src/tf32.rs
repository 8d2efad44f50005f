//! TF32, in which libtorch computes f32 convolutions on CUDA devices by default.

use std::sync::OnceLock;

/// Makes cuDNN compute f32 convolutions in f32 in this process, and returns `true` if libtorch took the setting.
///
/// The first call sets it; later ones leave the setting as the program has it, and return what the first one did.
/// TF32 has 10 bits of mantissa, 3 more than bf16 and 13 fewer than f32. Matrix products are in f32 by default.
/// libtorch's C++ interface alone has this setting, so it is found by its name there: not on Windows, which returns
/// `false`.
///
/// # Example
/// ```
/// assert_eq!(kontext_device::tf32::off_in_convolutions(), cfg!(unix));
/// ```
#[must_use]
pub fn off_in_convolutions() -> bool {
    static TAKEN: OnceLock<bool> = OnceLock::new();
    *TAKEN.get_or_init(|| set_in_convolutions(false))
}

/// Sets TF32 in convolutions. Source: pytorch v2.11.0 `aten/src/ATen/Context.h`, `globalContext` and
/// `Context::setAllowTF32CuDNN`, under the names of the Itanium C++ ABI.
#[cfg(unix)]
#[allow(unsafe_code)]
fn set_in_convolutions(allowed: bool) -> bool {
    use std::ffi::c_void;

    let program = libloading::os::unix::Library::this();
    // SAFETY: these are the functions' types by that ABI: a reference is returned as a pointer, and a method takes its
    // object as its first argument. The context is a constant of the process; the setter writes one of its fields.
    unsafe {
        let context = program.get::<unsafe extern "C" fn() -> *mut c_void>(b"_ZN2at13globalContextEv\0");
        let set = program.get::<unsafe extern "C" fn(*mut c_void, bool)>(b"_ZN2at7Context17setAllowTF32CuDNNEb\0");
        let (Ok(context), Ok(set)) = (context, set) else {
            return false;
        };
        set(context(), allowed);
    }
    true
}

#[cfg(not(unix))]
fn set_in_convolutions(_: bool) -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)] // In helper functions of a test.
    use super::*;

    /// Asks libtorch for the setting: `Context::allowTF32CuDNN(std::optional<Float32Op>)`, without an operation.
    #[allow(unsafe_code)]
    fn is_allowed() -> bool {
        use std::ffi::c_void;
        let program = libloading::os::unix::Library::this();
        // SAFETY: as above; an optional of an enumeration is passed in a register, and is empty if that is zero.
        unsafe {
            let context = program.get::<unsafe extern "C" fn() -> *mut c_void>(b"_ZN2at13globalContextEv\0");
            let name = b"_ZNK2at7Context14allowTF32CuDNNESt8optionalINS_9Float32OpEE\0";
            let get = program.get::<unsafe extern "C" fn(*const c_void, u64) -> bool>(name);
            get.unwrap()(context.unwrap()(), 0)
        }
    }

    #[test]
    fn convolutions_in_f32_are_switched_off_tf32_once() {
        assert!(set_in_convolutions(true));
        assert!(is_allowed());
        assert!(off_in_convolutions());
        assert!(!is_allowed());
        // A program that wants TF32 keeps it.
        assert!(set_in_convolutions(true) && off_in_convolutions());
        assert!(is_allowed());
    }
}
