//! How much memory and time a piece of code takes.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};
use std::time::Duration;

/// The system's allocator, with an account. libtorch does not allocate through it: see [`address_space`].
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that are allocated now, and the most that were since the last [`Meter::start`].
static NOW: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

fn add(bytes: usize) {
    let now = NOW.fetch_add(bytes as isize, Relaxed) + bytes as isize;
    MOST.fetch_max(now, Relaxed);
}

fn remove(bytes: usize) {
    NOW.fetch_sub(bytes as isize, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        remove(layout.size());
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while the bytes are copied.
        add(size);
        // SAFETY: the caller's.
        let moved = unsafe { System.realloc(at, layout, size) };
        remove(layout.size());
        moved
    }
}

/// The most memory since it was started, beyond what was taken then. Of all threads: one at a time is used.
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

/// The most bytes of addresses that the program ever had, libtorch's included; none where the system does not tell.
pub(crate) fn address_space() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Where the system tells of this thread, if it does.
pub(crate) fn this_thread() -> Option<PathBuf> {
    Some(
        Path::new("/proc")
            .join(std::fs::read_link("/proc/thread-self").ok()?)
            .join("schedstat"),
    )
}

/// How long a thread has computed; it may have waited for longer.
pub(crate) fn computed(thread: &Path) -> Option<Duration> {
    let told = std::fs::read_to_string(thread).ok()?;
    told.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}
