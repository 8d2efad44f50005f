//! Peak memory of the process, as Linux counts it; other systems report nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Interval at which the process's anonymous memory is read.
const INTERVAL: Duration = Duration::from_millis(20);

/// A thread that records the peak of the process's anonymous memory, which excludes mapped files.
pub(crate) struct MemoryWatch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Peak memory in bytes.
pub(crate) struct Peak {
    /// Anonymous memory.
    pub(crate) anonymous: u64,
    /// Resident memory, including pages of mapped files.
    pub(crate) resident: u64,
}

impl MemoryWatch {
    /// Starts the thread.
    pub(crate) fn start() -> Self {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, highest) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                highest.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(INTERVAL);
            }
        });
        Self {
            stop,
            peak,
            thread: Some(thread),
        }
    }

    /// Stops the thread and returns the peak since the start; `None` if the system does not report it.
    pub(crate) fn stop(mut self) -> Option<Peak> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads a file and sleeps.
            let _ = thread.join();
        }
        Some(Peak {
            anonymous: self.peak.load(Ordering::Relaxed),
            resident: field("VmHWM:")?,
        })
    }
}

/// Returns the process's anonymous memory in bytes; 0 if the system does not report it.
pub(crate) fn anonymous() -> u64 {
    field("RssAnon:").unwrap_or_default()
}

fn field(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
