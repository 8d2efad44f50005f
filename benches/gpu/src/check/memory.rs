//! Memory: a shortage must be an error that names its stage, and a run must release its memory.

use std::ops::ControlFlow;
use std::time::Instant;

use kontext::{Cancel, Device, Error, Event, Kind, Placement, Request, Stage, Tensor, free_memory};
use kontext_device::memory::give_back_on;

use super::distance::Trace;
use super::world::{World, edit, image};
use crate::device;
use crate::row::Outcome;
use crate::suite::Case;

/// Bytes left free in the shortage case: more than the prompt needs, and a fraction of the autoencoder's need
/// for a one-megapixel image.
const LEFT: u64 = 96_000_000;
/// Size in bytes of a dropped tensor that the allocator caches.
const KEPT: i64 = 256 << 20;
/// Side of the one-megapixel image, in pixels.
const SIDE: u32 = 1024;

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    vec![
        Case::new("memory/a cancelled run leaves nothing behind", move || cancelled(world)),
        Case::new("memory/giving back what is kept", move || given_back(world)),
        Case::new("memory/a run that cannot fit is refused before it starts", move || {
            refused(world)
        }),
        Case::new("memory/too little in between is told with its stage", move || {
            exhausted(world)
        }),
    ]
}

fn cancelled(world: &World) -> anyhow::Result<Outcome> {
    let pipe = world.pipeline(Kind::BFloat16)?;
    let before = Trace::of(&pipe, &edit())?;
    let held = device::account(world.device)?;
    let mut outcome = Outcome::default();
    for stop in 1..=2 {
        let cancel = Cancel::new();
        let run = pipe.run_with(&edit(), |event| {
            if matches!(event, Event::Step { done, .. } if done == stop) {
                cancel.cancel();
            }
            cancel.check()
        });
        outcome.holds(run.as_ref().is_err_and(Error::is_cancelled), || {
            format!("not cancelled at step {stop}")
        });
        drop(run);
        if let (Some(held), Some(now)) = (held, device::account(world.device)?) {
            outcome.value(format!("bytes held, cancelled at step {stop}"), now.allocated);
            outcome.value("bytes held before", held.allocated);
            outcome.holds(now.allocated == held.allocated, || {
                format!(
                    "{} bytes are held after the run, {} before",
                    now.allocated, held.allocated
                )
            });
        }
    }
    Trace::of(&pipe, &edit())?.equal(&before, &mut outcome);
    Ok(outcome)
}

/// Measures the release of memory that libtorch caches. Staged models release after each part, so it must be
/// fast.
fn given_back(world: &World) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let (mut milliseconds, mut freed) = (Vec::new(), 0);
    for _ in 0..3 {
        let before = free_memory(world.device)?;
        drop(Tensor::f_zeros([KEPT], (Kind::Uint8, world.device))?);
        let kept = free_memory(world.device)?;
        let begun = Instant::now();
        give_back_on(world.device);
        milliseconds.push(begun.elapsed().as_secs_f64() * 1e3);
        freed = free_memory(world.device)?.saturating_sub(kept);
        outcome.value("bytes kept", before.saturating_sub(kept));
    }
    outcome.value("first_ms", milliseconds[0]);
    outcome.value("ms", milliseconds[milliseconds.len() - 1]);
    if world.device.is_cuda() {
        outcome.holds(freed >= KEPT.unsigned_abs() / 2, || {
            format!("{freed} bytes were given back of {KEPT}")
        });
    }
    Ok(outcome)
}

fn refused(world: &World) -> anyhow::Result<Outcome> {
    let pipe = World::builder(world.device, Kind::BFloat16)
        .placement(Placement::Resident)
        .load(world.model())?;
    let before = Trace::of(&pipe, &edit())?;
    let error = pipe
        .run(&Request::generate("a cat").size(8192, 8192).steps(1).batch(256))
        .err();
    let told = error.as_ref().map_or_else(|| "it ran".to_owned(), ToString::to_string);
    let mut outcome = Outcome::default();
    outcome.holds(
        matches!(&error, Some(Error::Memory { stage, .. }) if *stage == Stage::Denoise),
        || told.clone(),
    );
    outcome.note(told);
    Trace::of(&pipe, &edit())?.equal(&before, &mut outcome);
    Ok(outcome)
}

/// Simulates another program that takes the memory after the plan was checked.
fn exhausted(world: &World) -> anyhow::Result<Outcome> {
    if world.device == Device::Cpu {
        return Ok(Outcome::skipped(
            "a program on a CPU is ended by the system where memory is short; the plan is checked before",
        ));
    }
    let pipe = World::builder(world.device, Kind::BFloat16)
        .placement(Placement::Resident)
        .load(world.model())?;
    let large = Request::edit(image(SIDE, SIDE), "make it winter").steps(1).seed(5);
    let before = Trace::of(&pipe, &large)?;
    give_back_on(world.device);
    let (mut taken, mut failed) = (None, None);
    let run = pipe.run_with(&large, |event| {
        if matches!(event, Event::Planned { .. }) {
            match fill(world.device) {
                Ok(tensor) => taken = Some(tensor),
                Err(error) => failed = Some(error),
            }
        }
        ControlFlow::Continue(())
    });
    if let Some(error) = failed {
        return Err(error.context("taking the memory"));
    }
    drop(taken);
    give_back_on(world.device);
    let error = run.err();
    let told = error
        .as_ref()
        .map_or_else(|| "it ran all the same".to_owned(), ToString::to_string);
    let mut outcome = Outcome::default();
    outcome.holds(matches!(error, Some(Error::Memory { .. })), || {
        format!("no shortage of memory: {told}")
    });
    outcome.holds(told.contains("encoding the reference images"), || {
        format!("another stage: {told}")
    });
    outcome.note(told);
    // The next run must not be affected.
    Trace::of(&pipe, &large)?.equal(&before, &mut outcome);
    Ok(outcome)
}

/// Allocates all free memory of a device except [`LEFT`] bytes.
fn fill(on: Device) -> anyhow::Result<Tensor> {
    let bytes = free_memory(on)?.saturating_sub(LEFT);
    Ok(Tensor::f_empty([i64::try_from(bytes)?], (Kind::Uint8, on))?)
}
