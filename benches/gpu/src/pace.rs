//! The time of short work, without that of its submission.

use std::time::Instant;

use kontext::{Device, Kind, Tensor};

use crate::device::{self, Mark};

/// Timed calls on a CUDA device.
const TIMED: u32 = 20;
/// Side of the matrices whose product keeps the device busy, some 20 ms in f32, while work is submitted.
const SIDE: i64 = 8192;

/// Milliseconds of a piece of work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The first call, by the wall clock.
    pub(crate) first_ms: f64,
    /// The mean of the others, on the device.
    pub(crate) ms: f64,
}

/// Times `work`: on a CUDA device the mean of [`TIMED`] calls that were submitted while the device was busy, on a
/// CPU a second call.
pub(crate) fn pace<T>(on: Device, mut work: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<Pace> {
    device::synchronize(on)?;
    let begun = Instant::now();
    work()?;
    device::synchronize(on)?;
    let first_ms = begun.elapsed().as_secs_f64() * 1e3;
    let calls = if on.is_cuda() { TIMED } else { 1 };
    let busy = on
        .is_cuda()
        .then(|| Tensor::f_ones([SIDE, SIDE], (Kind::Float, on)))
        .transpose()?;
    let product = busy.as_ref().map(|matrix| matrix.f_matmul(matrix)).transpose()?;
    let begin = Mark::now(on)?;
    for _ in 0..calls {
        work()?;
    }
    let end = Mark::now(on)?;
    let ms = begin.until(&end)? / f64::from(calls);
    drop((product, busy));
    Ok(Pace { first_ms, ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_call_is_timed_apart() {
        let mut calls = 0;
        let pace = pace(Device::Cpu, || {
            calls += 1;
            std::thread::sleep(std::time::Duration::from_millis(if calls == 1 { 40 } else { 1 }));
            Ok(())
        })
        .expect("timed");
        assert_eq!(calls, 2);
        assert!(
            pace.first_ms >= 40.0 && pace.ms >= 1.0 && pace.ms < pace.first_ms,
            "{pace:?}"
        );
    }
}
