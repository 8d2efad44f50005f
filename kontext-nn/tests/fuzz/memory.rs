//! Measurement of the memory and the computing time of code.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};
use std::time::Duration;

/// The system's allocator, with a count. libtorch does not allocate through it: see [`address_space`].
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes allocated now, and their peak since the last [`Meter::start`].
static NOW: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

fn add(bytes: usize) {
    let now = NOW.fetch_add(bytes as isize, Relaxed) + bytes as isize;
    MOST.fetch_max(now, Relaxed);
}

fn remove(bytes: usize) {
    NOW.fetch_sub(bytes as isize, Relaxed);
}

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        remove(layout.size());
        // SAFETY: guaranteed by the caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist while the bytes are copied.
        add(size);
        // SAFETY: guaranteed by the caller.
        let moved = unsafe { System.realloc(at, layout, size) };
        remove(layout.size());
        moved
    }
}

/// Peak memory since its start, beyond the memory taken then. It counts all threads, so one is used at a
/// time.
pub(crate) struct Meter(isize);

impl Meter {
    pub(crate) fn start() -> Self {
        let now = NOW.load(Relaxed);
        MOST.store(now, Relaxed);
        Self(now)
    }

    pub(crate) fn most(&self) -> u64 {
        (MOST.load(Relaxed) - self.0).max(0) as u64
    }
}

/// Returns the peak address space of the program in bytes, with libtorch's; `None` if the system does not
/// report it.
pub(crate) fn address_space() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Returns the path of this thread's statistics, if the system has them.
pub(crate) fn this_thread() -> Option<PathBuf> {
    Some(
        Path::new("/proc")
            .join(std::fs::read_link("/proc/thread-self").ok()?)
            .join("schedstat"),
    )
}

/// Returns the computing time of a thread, which may have waited for longer.
pub(crate) fn computed(thread: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(thread).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}
