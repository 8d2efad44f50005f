//! The program's memory, as the system counts it.
// Linux alone tells it in this way; elsewhere nothing is said.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the program's own memory is read.
const INTERVAL: Duration = Duration::from_millis(20);

/// Watches the most memory that the program has had of its own, without pages of files.
pub struct Watch {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start() -> Self {
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, highest) = (Arc::clone(&stop), Arc::clone(&most));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                highest.fetch_max(field("RssAnon:").unwrap_or_default(), Ordering::Relaxed);
                std::thread::sleep(INTERVAL);
            }
        });
        Self {
            stop,
            most,
            thread: Some(thread),
        }
    }

    /// Bytes of its own, and with pages of files, at their highest.
    pub fn stop(mut self) -> Option<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads a file and sleeps.
            let _ = thread.join();
        }
        Some((self.most.load(Ordering::Relaxed), field("VmHWM:")?))
    }
}

/// Bytes that the program has of its own now.
pub fn own() -> u64 {
    field("RssAnon:").unwrap_or_default()
}

fn field(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
