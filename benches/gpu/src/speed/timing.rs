//! Timing of repeated work: the first call, then the device and host time of steady calls.

use std::time::Instant;

use kontext::{Device, Event, Output, Pipeline, Request};

use crate::cupti;
use crate::device::{self, Mark};
use crate::observe::observed;
use crate::row::Outcome;

/// Number of warm-up calls after the first.
const WARM: usize = 2;
/// Number of calls timed on the device, back to back without synchronisation, as in a sampler.
const TIMED: usize = 7;
/// Number of calls timed on the host, each with the device idle, so that none waits for space in the queue.
const ENQUEUED: usize = 3;

/// Times `work` and records the results: `first_s` by the wall clock, its excess over a steady call, the medians
/// of the device's milliseconds and of the host's for submitting the work, and the peak memory of tensors.
pub(super) fn timed<T>(
    on: Device,
    outcome: &mut Outcome,
    mut work: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<()> {
    device::synchronize(on)?;
    device::reset_peak(on)?;
    let begun = Instant::now();
    work()?;
    device::synchronize(on)?;
    let first_s = begun.elapsed().as_secs_f64();
    for _ in 0..WARM {
        work()?;
    }
    device::synchronize(on)?;
    let mut marks = vec![Mark::now(on)?];
    for _ in 0..TIMED {
        work()?;
        marks.push(Mark::now(on)?);
    }
    let on_device = marks.windows(2).map(|pair| pair[0].until(&pair[1]));
    let mut on_device = on_device.collect::<anyhow::Result<Vec<f64>>>()?;
    let mut on_host = Vec::new();
    for _ in 0..ENQUEUED {
        device::synchronize(on)?;
        let begun = Instant::now();
        work()?;
        on_host.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let ms = median(&mut on_device);
    outcome.value("first_s", first_s);
    outcome.value("excess_s", first_s - ms / 1e3);
    outcome.value("ms", ms);
    outcome.value("min_ms", on_device[0]);
    outcome.value("host_ms", median(&mut on_host));
    peak(on, outcome)
}

/// Records the peak memory of tensors, and the peak that libtorch reserved on the device.
pub(super) fn peak(on: Device, outcome: &mut Outcome) -> anyhow::Result<()> {
    if let Some(account) = device::account(on)? {
        outcome.value("peak_gb", account.peak as f64 / 1e9);
        outcome.value("reserved_gb", account.reserved_peak as f64 / 1e9);
    }
    Ok(())
}

/// Records the number of kernels that one call of `work` runs, and the share of its time during which the
/// device is busy.
pub(super) fn launches<T>(
    on: Device,
    outcome: &mut Outcome,
    mut work: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<()> {
    work()?;
    device::synchronize(on)?;
    let mut elapsed = 0.0;
    let activity = cupti::observed(|| {
        let begin = Mark::now(on)?;
        drop(work()?);
        elapsed = begin.until(&Mark::now(on)?)?;
        device::synchronize(on)
    })?;
    outcome.value("kernels", activity.kernels);
    outcome.value("copies and fills", activity.copies);
    outcome.value("busy_ms", activity.busy_ns as f64 / 1e6);
    outcome.value("ms, observed", elapsed);
    outcome.value("busy share", activity.busy_ns as f64 / 1e6 / elapsed);
    Ok(())
}

/// Runs a request, and records a mark after each step.
pub(super) fn marked(on: Device, pipe: &Pipeline, request: &Request) -> anyhow::Result<(Output, Vec<Mark>)> {
    let mut marks = Vec::new();
    let output = observed(pipe, request, |event| {
        if matches!(event, Event::Step { .. }) {
            marks.push(Mark::now(on)?);
        }
        Ok(())
    })?;
    Ok((output, marks))
}

/// Sorts the values, and returns the median.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_called_as_often_as_it_says() {
        let (mut calls, mut outcome) = (0, Outcome::default());
        timed(Device::Cpu, &mut outcome, || {
            calls += 1;
            Ok(())
        })
        .expect("timed");
        assert_eq!(calls, 1 + WARM + TIMED + ENQUEUED);
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
