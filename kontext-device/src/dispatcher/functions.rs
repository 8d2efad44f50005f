//! Functions of libtorch and of C++'s runtime, looked up in the program.

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

/// `AtenTensorHandle`: a pointer to an `at::Tensor`, as tch's are.
pub(super) type Handle = *mut c_void;
/// `StableIValue`: the bits of a number, a handle, or a pointer to such a word for an optional value.
pub(super) type Word = u64;
/// `AOTITorchError`; 0 is success.
pub(super) type Status = c_int;

/// The functions. None of them unwinds: those of libtorch catch each exception, and memory is asked for without one.
pub(super) struct Functions {
    pub(super) call: unsafe extern "C" fn(*const c_char, *const c_char, *mut Word) -> Status,
    pub(super) new_tensor: unsafe extern "C" fn(Handle, *mut Handle) -> Status,
    pub(super) delete_tensor: unsafe extern "C" fn(Handle) -> Status,
    /// `operator new(size_t, nothrow_t const &)`, whose memory libtorch frees by `operator delete`.
    pub(super) allocate: unsafe extern "C" fn(usize, *const c_void) -> *mut c_void,
    /// `operator delete(void *)`.
    pub(super) free: unsafe extern "C" fn(*mut c_void),
}

/// Returns the functions of this program.
pub(super) fn functions() -> Result<&'static Functions, String> {
    static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
    FUNCTIONS.get_or_init(Functions::find).as_ref().map_err(Clone::clone)
}

impl Functions {
    #[cfg(unix)]
    #[allow(unsafe_code)]
    fn find() -> Result<Self, String> {
        let all = libloading::os::unix::Library::this();
        let absent = |error: libloading::Error| {
            format!("this libtorch lacks a function of its stable interface ({error}); take libtorch 2.11")
        };
        // SAFETY: these are the functions' types in libtorch's header and in C++'s ABI; both libraries are those that
        // the program is linked to, and are never closed.
        unsafe {
            Ok(Self {
                call: *all.get(b"aoti_torch_call_dispatcher\0").map_err(absent)?,
                new_tensor: *all.get(b"aoti_torch_new_tensor_handle\0").map_err(absent)?,
                delete_tensor: *all.get(b"aoti_torch_delete_tensor_object\0").map_err(absent)?,
                allocate: *all.get(b"_ZnwmRKSt9nothrow_t\0").map_err(absent)?,
                free: *all.get(b"_ZdlPv\0").map_err(absent)?,
            })
        }
    }

    #[cfg(not(unix))]
    fn find() -> Result<Self, String> {
        Err("operators are called by their schema on Unix only".to_owned())
    }
}
