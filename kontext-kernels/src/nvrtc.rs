//! NVRTC, NVIDIA's compiler for run time, opened next to libtorch's other libraries.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use kontext_core::{Error, Result};
use kontext_device::libtorch;

/// File name of the library on Linux, by which the system finds it, too.
const LIBRARY: &str = "libnvrtc.so.13";
/// Name prefix of the library that the compiler opens for itself, by name.
const BUILTINS: &str = "libnvrtc-builtins.so.13";
/// The runtime, which every libtorch for CUDA 13 has loaded; NVRTC is in its folder.
const RUNTIME: &str = "libcudart.so.13";

/// `nvrtcProgram`.
type Program = *mut c_void;
/// `nvrtcResult`; 0 is success.
type Status = c_int;

/// The compiler, which stays loaded as long as the program runs. Source of the signatures: CUDA 13.0
/// `nvrtc.h`.
#[derive(Debug)]
pub struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    code_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    code: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    words: unsafe extern "C" fn(Status) -> *const c_char,
    get_version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
}

/// A program of the compiler, destroyed on drop.
struct Owned<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Nvrtc {
    /// Opens the compiler next to the CUDA runtime that libtorch has loaded, or where the system finds it.
    ///
    /// # Errors
    /// [`Error::Device`] if it is not there, or lacks a function.
    pub fn find() -> Result<Self> {
        let neighbour = libtorch::loaded(RUNTIME).map(|file| file.with_file_name(LIBRARY));
        let next_to_runtime = neighbour.filter(|file| file.is_file());
        Self::open(&next_to_runtime.unwrap_or_else(|| PathBuf::from(LIBRARY)))
    }

    /// Opens a compiler by its file.
    ///
    /// # Errors
    /// [`Error::Device`] if it cannot be opened, or lacks a function.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_on_unix(path).map_err(|reason| {
            failed(format!(
                "NVRTC, which compiles the kernels, cannot be opened ({reason}); install the wheel \
                 nvidia-cuda-nvrtc 13.0, or take libtorch's operations"
            ))
        })
    }

    #[cfg(unix)]
    #[allow(unsafe_code)]
    fn open_on_unix(path: &Path) -> Result<Self, String> {
        use libloading::os::unix::{Library, RTLD_NOW};
        // The system's words are the source of the library's error.
        let text = |error: libloading::Error| match std::error::Error::source(&error) {
            Some(source) => source.to_string(),
            None => error.to_string(),
        };
        // Next to the compiler, the builtins are on no search path; once they are loaded, their name suffices.
        let neighbours = path
            .parent()
            .into_iter()
            .filter_map(|folder| std::fs::read_dir(folder).ok());
        let is_builtins = |file: &PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(BUILTINS)
        };
        let builtins = neighbours
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .find(is_builtins);
        // SAFETY: neither library has initialisers that depend on the program; both stay open. These are the functions'
        // types in NVRTC's header.
        unsafe {
            if let Some(builtins) = builtins {
                std::mem::forget(Library::open(Some(builtins), RTLD_NOW).map_err(text)?);
            }
            let library = Library::open(Some(path), RTLD_NOW).map_err(text)?;
            let nvrtc = Self {
                create: *library.get(b"nvrtcCreateProgram\0").map_err(text)?,
                destroy: *library.get(b"nvrtcDestroyProgram\0").map_err(text)?,
                compile: *library.get(b"nvrtcCompileProgram\0").map_err(text)?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0").map_err(text)?,
                log: *library.get(b"nvrtcGetProgramLog\0").map_err(text)?,
                code_size: *library.get(b"nvrtcGetCUBINSize\0").map_err(text)?,
                code: *library.get(b"nvrtcGetCUBIN\0").map_err(text)?,
                words: *library.get(b"nvrtcGetErrorString\0").map_err(text)?,
                get_version: *library.get(b"nvrtcVersion\0").map_err(text)?,
            };
            std::mem::forget(library);
            Ok(nvrtc)
        }
    }

    #[cfg(not(unix))]
    fn open_on_unix(_: &Path) -> Result<Self, String> {
        Err("kernels are compiled on Unix only".to_owned())
    }

    /// Returns the compiler's version, such as (13, 0).
    ///
    /// # Errors
    /// [`Error::Device`] if the compiler fails.
    #[allow(unsafe_code)]
    pub fn version(&self) -> Result<(i32, i32)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes to two variables that outlive the call.
        let status = unsafe { (self.get_version)(&raw mut major, &raw mut minor) };
        self.check("nvrtcVersion", status)?;
        Ok((major, minor))
    }

    /// Compiles a text to a cubin.
    ///
    /// # Errors
    /// [`Error::Device`] with the compiler's message if it refuses the text or an option.
    #[allow(unsafe_code)]
    pub fn compile(&self, source: &str, options: &[String]) -> Result<Vec<u8>> {
        let c_text = |text: &str| CString::new(text).map_err(|error| failed(error.to_string()));
        let (source, options) = (
            c_text(source)?,
            options
                .iter()
                .map(|option| c_text(option))
                .collect::<Result<Vec<_>>>()?,
        );
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = ptr::null_mut();
        // SAFETY: the texts end in zeros and outlive the calls; there are no headers.
        let status = unsafe {
            let name = c"kontext.cu".as_ptr();
            (self.create)(&raw mut program, source.as_ptr(), name, 0, ptr::null(), ptr::null())
        };
        self.check("nvrtcCreateProgram", status)?;
        let owned = Owned { nvrtc: self, program };
        // SAFETY: the program is alive; there are as many pointers as said.
        let status = unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        if status != 0 {
            let log = owned.read("log", self.log_size, self.log)?;
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches(['\0', '\n']);
            let cause = self
                .check("nvrtcCompileProgram", status)
                .err()
                .map(|error| error.to_string());
            return Err(failed(format!("{}: {log}", cause.unwrap_or_default())));
        }
        owned.read("code", self.code_size, self.code)
    }

    fn check(&self, function: &str, status: Status) -> Result<()> {
        match status {
            0 => Ok(()),
            _ => Err(failed(self.words_for(function, status))),
        }
    }

    #[allow(unsafe_code)]
    fn words_for(&self, function: &str, status: Status) -> String {
        // SAFETY: for any number, the compiler returns a static string, never freed.
        let words = unsafe { CStr::from_ptr((self.words)(status)) };
        format!("{function}: {} ({status})", words.to_string_lossy())
    }
}

impl Owned<'_> {
    /// Returns a result of the program by the functions for its size and its bytes.
    #[allow(unsafe_code)]
    fn read(
        &self,
        name: &str,
        size_of: unsafe extern "C" fn(Program, *mut usize) -> Status,
        read: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program is alive; the second function writes as many bytes as the first one says.
        unsafe {
            self.nvrtc.check(name, size_of(self.program, &raw mut size))?;
            let mut bytes = vec![0_u8; size];
            self.nvrtc.check(name, read(self.program, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }
}

impl Drop for Owned<'_> {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the program is owned by this value.
        unsafe {
            (self.nvrtc.destroy)(&raw mut self.program);
        }
    }
}

pub(crate) fn failed(reason: String) -> Error {
    Error::Device {
        device: "cuda".to_owned(),
        reason,
    }
}
