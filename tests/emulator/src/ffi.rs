//! The interface of `cpp/machine.cpp`.

use std::ffi::{c_char, c_uint, c_void};

use kontext_kernels::{Access, Buffer};

/// `Buffer` of `cpp/memory.h`.
#[repr(C)]
pub(crate) struct CBuffer {
    address: *const c_void,
    bytes: usize,
    counts: [usize; 2],
    strides: [usize; 2],
    access: i32,
}

impl CBuffer {
    pub(crate) fn of(buffer: &Buffer) -> Self {
        Self {
            address: buffer.address,
            bytes: buffer.bytes,
            counts: buffer.counts,
            strides: buffer.strides,
            access: match buffer.access {
                Access::Read => 0,
                Access::Write => 1,
                Access::Update => 2,
            },
        }
    }
}

/// `Launch` of `cpp/machine.cpp`.
#[repr(C)]
pub(crate) struct CLaunch {
    pub(crate) kernels: *const c_void,
    pub(crate) kernel: *const c_char,
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) arguments: *mut *mut c_void,
    pub(crate) buffers: *const CBuffer,
    pub(crate) buffer_count: usize,
    pub(crate) order: c_uint,
}

/// `Report` of `cpp/machine.cpp`.
#[repr(C)]
pub(crate) struct CReport {
    pub(crate) wrong: [u8; 400],
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod linked {
    use super::*;
    use crate::variants::{FAULTS, SHAPES};

    unsafe extern "C" {
        static emulated_variants: [*const c_void; SHAPES.len() + FAULTS.len()];
        fn emulated_launch(launch: *const CLaunch, report: *mut CReport);
    }

    /// Runs a launch of the variant `index`. The machine has one set of fibers: the caller holds a lock.
    pub(crate) fn launch(index: usize, launch: &mut CLaunch, report: &mut CReport) {
        // SAFETY: the structures are those of the C++ side; the launch's pointers are valid for the call, as only
        // kontext-kernels makes them, and accesses outside its buffers are refused before they happen.
        unsafe {
            launch.kernels = emulated_variants[index];
            emulated_launch(launch, report);
        }
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linked::launch;

#[cfg(not(target_os = "linux"))]
pub(crate) fn launch(_: usize, _: &mut CLaunch, report: &mut CReport) {
    let words = b"the emulator runs on Linux only";
    report.wrong[..words.len()].copy_from_slice(words);
}
