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

/// Returns the time in nanoseconds that all threads of this process have computed.
fn computed() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let time = |task: std::io::Result<std::fs::DirEntry>| -> Option<u64> {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.filter_map(time).sum()
}

/// Returns the milliseconds that short regions with pauses take of the processors.
fn cost(tensor: &Tensor) -> u64 {
    let _ = tensor.sin();
    let before = computed();
    for _ in 0..REGIONS {
        let _ = tensor.sin();
        thread::sleep(PAUSE);
    }
    (computed() - before) / 1_000_000
}

#[test]
fn threads_sleep_while_they_wait() {
    let _team = Team::of(2);
    let tensor = Tensor::ones([70_000], (Kind::Float, tch::Device::Cpu));
    let spinning = cost(&tensor);
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    assert!(wait_passively());
    let started = threads() - before;
    assert!(started >= 3, "{started}");
    assert!(wait_passively());
    assert_eq!(threads() - before, started, "once only");
    let sleeping = cost(&tensor);
    // On one processor, or with OMP_WAIT_POLICY=passive, the threads sleep anyway.
    println!("{spinning} ms of the processors before, {sleeping} ms after");
    assert!(sleeping < 200 && sleeping <= spinning + 50, "{spinning} {sleeping}");
    let several = thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    if several && std::env::var_os("OMP_WAIT_POLICY").is_none() && std::env::var_os("GOMP_SPINCOUNT").is_none() {
        assert!(2 * sleeping < spinning, "{spinning} {sleeping}");
    }
}
