//! Counts of kernels and copies on a CUDA device, and the time during which it is busy.
//!
//! Measured by CUPTI's activity records, from the library that libtorch itself links to. Source of signatures
//! and layouts: CUDA 13.0 `cupti_activity.h`, `CUpti_ActivityKernel10` and `CUpti_ActivityMemcpy6`.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{anyhow, bail};

/// Record kinds.
const MEMCPY: u32 = 1;
const MEMSET: u32 = 2;
const CONCURRENT_KERNEL: u32 = 10;
/// Flush flag: also deliver records of unfinished work.
const FORCED: u32 = 1;
/// Size of a buffer in bytes; a record takes some 200.
const BUFFER: usize = 8 << 20;
/// Byte offset of the two timestamps, in nanoseconds, in records of these kinds.
const TIMES: usize = 16;

/// Work executed on a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    pub(crate) kernels: u64,
    pub(crate) copies: u64,
    /// Nanoseconds during which at least one of them ran.
    pub(crate) busy_ns: u64,
}

/// CUPTI's functions.
struct Functions {
    register: unsafe extern "C" fn(Request, Complete) -> u32,
    enable: unsafe extern "C" fn(u32) -> u32,
    disable: unsafe extern "C" fn(u32) -> u32,
    flush: unsafe extern "C" fn(u32) -> u32,
    next: unsafe extern "C" fn(*mut u8, usize, *mut *mut u8) -> u32,
}

type Request = unsafe extern "C" fn(*mut *mut u8, *mut usize, *mut usize);
type Complete = unsafe extern "C" fn(*mut c_void, u32, *mut u8, usize, usize);

static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
/// Kind, begin and end of the recorded work.
static RECORDS: Mutex<Vec<(u32, u64, u64)>> = Mutex::new(Vec::new());

#[allow(unsafe_code)]
fn find() -> Result<Functions, String> {
    let all = libloading::os::unix::Library::this();
    let absent = |error: libloading::Error| format!("libtorch has no CUPTI loaded ({error})");
    // SAFETY: these are the functions' types in the header named above; the library is never closed.
    unsafe {
        Ok(Functions {
            register: *all.get(b"cuptiActivityRegisterCallbacks\0").map_err(absent)?,
            enable: *all.get(b"cuptiActivityEnable\0").map_err(absent)?,
            disable: *all.get(b"cuptiActivityDisable\0").map_err(absent)?,
            flush: *all.get(b"cuptiActivityFlushAll\0").map_err(absent)?,
            next: *all.get(b"cuptiActivityGetNextRecord\0").map_err(absent)?,
        })
    }
}

/// Runs `work`, which must synchronise with the device at its end, and returns the recorded activity.
#[allow(unsafe_code)]
pub(crate) fn observed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Activity> {
    let functions = FUNCTIONS
        .get_or_init(find)
        .as_ref()
        .map_err(|error| anyhow!(error.clone()))?;
    let check = |what: &str, status: u32| {
        if status == 0 {
            Ok(())
        } else {
            Err(anyhow!("{what} failed ({status})"))
        }
    };
    records().clear();
    // SAFETY: both callbacks are functions of this module, which live as long as the program; the others take
    // numbers.
    unsafe {
        check(
            "cuptiActivityRegisterCallbacks",
            (functions.register)(request, complete),
        )?;
    };
    for kind in [CONCURRENT_KERNEL, MEMCPY, MEMSET] {
        // SAFETY: as above.
        unsafe { check("cuptiActivityEnable", (functions.enable)(kind))? };
    }
    let worked = work();
    // SAFETY: as above.
    let flushed = unsafe { check("cuptiActivityFlushAll", (functions.flush)(FORCED)) };
    for kind in [CONCURRENT_KERNEL, MEMCPY, MEMSET] {
        // SAFETY: as above.
        let _ = unsafe { (functions.disable)(kind) };
    }
    worked.and(flushed)?;
    let activity = summed(&mut records());
    if activity.kernels == 0 {
        bail!("CUPTI saw no kernel");
    }
    Ok(activity)
}

fn records() -> std::sync::MutexGuard<'static, Vec<(u32, u64, u64)>> {
    RECORDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Computes the counts, and the length of the union of all intervals.
fn summed(records: &mut [(u32, u64, u64)]) -> Activity {
    records.sort_by_key(|(_, begin, _)| *begin);
    let (mut activity, mut until) = (Activity::default(), 0);
    for &(kind, begin, end) in records.iter() {
        if kind == CONCURRENT_KERNEL {
            activity.kernels += 1;
        } else {
            activity.copies += 1;
        }
        activity.busy_ns += end.saturating_sub(begin.max(until));
        until = until.max(end);
    }
    activity
}

/// Addresses of the buffers that CUPTI holds. `complete` frees only these, and nothing else does.
static HELD: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// Callback that hands CUPTI a buffer of u64, hence aligned to 8 bytes.
#[allow(unsafe_code)]
unsafe extern "C" fn request(buffer: *mut *mut u8, size: *mut usize, most: *mut usize) {
    let memory = Box::leak(vec![0_u64; BUFFER / 8].into_boxed_slice())
        .as_mut_ptr()
        .cast::<u8>();
    HELD.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(memory as usize);
    // SAFETY: CUPTI passes three valid pointers to write to.
    unsafe {
        *buffer = memory;
        *size = BUFFER;
        *most = 0;
    }
}

/// Callback that takes a buffer back, reads its records and frees it.
#[allow(unsafe_code)]
unsafe extern "C" fn complete(_: *mut c_void, _: u32, buffer: *mut u8, _: usize, valid: usize) {
    if let Some(Ok(functions)) = FUNCTIONS.get() {
        let mut record: *mut u8 = std::ptr::null_mut();
        // SAFETY: the buffer is one of `request`, and `record` is null or the last record in it.
        while valid > 0 && unsafe { (functions.next)(buffer, valid, &raw mut record) } == 0 {
            // SAFETY: a record starts with its kind and is aligned to 8 bytes.
            let kind = unsafe { record.cast::<u32>().read() };
            if [CONCURRENT_KERNEL, MEMCPY, MEMSET].contains(&kind) {
                // SAFETY: records of these kinds have two timestamps at this offset.
                let (begin, end) = unsafe {
                    (
                        record.add(TIMES).cast::<u64>().read_unaligned(),
                        record.add(TIMES + 8).cast::<u64>().read_unaligned(),
                    )
                };
                records().push((kind, begin, end));
            }
        }
    }
    if HELD
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&(buffer as usize))
    {
        // SAFETY: it was leaked in `request` with this length, and CUPTI has returned it.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(buffer.cast::<u64>(), BUFFER / 8)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_at_the_same_time_is_counted_once() {
        let mut records = vec![
            (CONCURRENT_KERNEL, 30, 40),
            (CONCURRENT_KERNEL, 0, 10),
            (MEMCPY, 5, 20),
            (MEMSET, 6, 8),
        ];
        let activity = summed(&mut records);
        assert_eq!(
            activity,
            Activity {
                kernels: 2,
                copies: 2,
                busy_ns: 30
            }
        );
    }

    /// The library is found, and returns an error if there is no driver.
    #[test]
    fn cupti_is_found_beside_libtorch_or_named() {
        if kontext_device::device::available(kontext::Device::Cuda(0)).is_ok() {
            println!("skipped: this machine has a CUDA device");
            return;
        }
        let error = observed(|| Ok(())).expect_err("no device").to_string();
        assert!(error.contains("cupti") || error.contains("CUPTI"), "{error}");
    }
}
