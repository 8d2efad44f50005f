//! Functions of the loaded OpenMP and MKL libraries, which libtorch brings along and tch does not pass on.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::OnceLock;

/// The functions that this program's libraries have; none of them on Windows, where a library has to be named.
///
/// Sources: OpenMP 5.2, sections 18.2.1 and 18.2.3, for those of `omp.h`; oneMKL's Developer Reference, “Threading Control”;
/// gcc 14 `libgomp/libgomp_g.h` for `GOMP_parallel`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Library {
    set_threads: Option<unsafe extern "C" fn(c_int)>,
    processors: Option<unsafe extern "C" fn() -> c_int>,
    mkl_set_threads: Option<unsafe extern "C" fn(c_int) -> c_int>,
    gnu_parallel: Option<GnuParallel>,
    /// A function that only LLVM's library has.
    llvm: Option<unsafe extern "C" fn(c_int)>,
}

/// Work, its data, the number of threads, and flags.
type GnuParallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

extern "C" fn nothing(_: *mut c_void) {}

impl Library {
    /// Returns the functions that are loaded.
    pub(super) fn loaded() -> Self {
        static LOADED: OnceLock<Library> = OnceLock::new();
        *LOADED.get_or_init(Self::find)
    }

    #[cfg(unix)]
    #[allow(unsafe_code)]
    fn find() -> Self {
        let program = libloading::os::unix::Library::this();
        // SAFETY: these are the functions' types in the libraries' headers; the libraries, on which libtorch
        // depends, are never closed.
        unsafe {
            Self {
                set_threads: program.get(b"omp_set_num_threads\0").ok().map(|found| *found),
                processors: program.get(b"omp_get_num_procs\0").ok().map(|found| *found),
                mkl_set_threads: program.get(b"MKL_Set_Num_Threads_Local\0").ok().map(|found| *found),
                gnu_parallel: program.get(b"GOMP_parallel\0").ok().map(|found| *found),
                llvm: program.get(b"kmp_set_blocktime\0").ok().map(|found| *found),
            }
        }
    }

    #[cfg(not(unix))]
    fn find() -> Self {
        Self::default()
    }

    /// Sets the number of threads of OpenMP's teams for the calling thread; `false` without the function.
    #[allow(unsafe_code)]
    pub(super) fn set_threads(self, threads: c_int) -> bool {
        let Some(set) = self.set_threads else { return false };
        // SAFETY: it changes a number of the calling thread only; a number below 1 is one that OpenMP replaces.
        unsafe { set(threads) };
        true
    }

    /// Sets MKL's number of threads for the calling thread, 0 for OpenMP's, and returns the number before; `None`
    /// without MKL.
    #[allow(unsafe_code)]
    pub(super) fn set_mkl_threads(self, threads: c_int) -> Option<c_int> {
        // SAFETY: it changes a number of the calling thread only, and takes any.
        self.mkl_set_threads.map(|set| unsafe { set(threads) })
    }

    /// Returns the number of processors that GNU's OpenMP counts; `None` with another library.
    #[allow(unsafe_code)]
    pub(super) fn gnu_processors(self) -> Option<usize> {
        let (Some(_), Some(processors), None) = (self.gnu_parallel, self.processors, self.llvm) else {
            return None;
        };
        // SAFETY: it takes nothing and returns a number.
        usize::try_from(unsafe { processors() }).ok()
    }

    /// Starts a team of GNU's OpenMP, which stays as long as the calling thread.
    #[allow(unsafe_code)]
    pub(super) fn start_gnu_team(self, threads: c_uint) {
        if let Some(parallel) = self.gnu_parallel {
            // SAFETY: the work is a function that reads nothing, and 0 are no flags.
            unsafe { parallel(nothing, std::ptr::null_mut(), threads, 0) };
        }
    }
}
