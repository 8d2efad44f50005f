//! Tests how OpenMP's threads wait, in a process of their own: the change is for good.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // In helper functions of a test, which prints what it measured.

use std::thread;
use std::time::Duration;

use kontext_device::openmp::{Team, wait_passively};
use tch::{Kind, Tensor};

/// Regions of two threads, with pauses that are shorter than OpenMP's threads spin.
const REGIONS: usize = 300;
const PAUSE: Duration = Duration::from_millis(2);

/// Returns how often a thread of this process, other than the test's own, gave its processor back to wait.
fn sleeps() -> usize {
    let own = thread_id();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let count = |task: std::io::Result<std::fs::DirEntry>| -> Option<usize> {
        let task = task.ok()?;
        let text = std::fs::read_to_string(task.path().join("status")).ok()?;
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        (task.file_name() != *own).then(|| count.trim().parse().ok())?
    };
    tasks.filter_map(count).sum()
}

/// Returns the system's number of the calling thread.
fn thread_id() -> std::ffi::OsString {
    std::fs::read_link("/proc/thread-self")
        .unwrap()
        .file_name()
        .unwrap()
        .to_owned()
}

/// Returns how often threads slept during short regions with pauses.
fn sleeps_of_regions(tensor: &Tensor) -> usize {
    let _ = tensor.sin();
    let before = sleeps();
    for _ in 0..REGIONS {
        let _ = tensor.sin();
        thread::sleep(PAUSE);
    }
    sleeps() - before
}

#[test]
fn threads_sleep_while_they_wait() {
    let _team = Team::of(2);
    let tensor = Tensor::ones([70_000], (Kind::Float, tch::Device::Cpu));
    let before_the_change = sleeps_of_regions(&tensor);
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    assert!(wait_passively());
    let started = threads() - before;
    assert!(started >= 3, "{started}");
    assert!(wait_passively());
    assert_eq!(threads() - before, started, "once only");
    let after = sleeps_of_regions(&tensor);
    // Before, the thread sleeps only where the machine is busy, or OMP_WAIT_POLICY says so.
    println!("{before_the_change} sleeps in {REGIONS} regions before, {after} after");
    assert!(after >= REGIONS * 9 / 10, "{after}");
}
