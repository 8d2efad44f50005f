//! A whole edit, as a user runs it: what it takes next to its steps, cold and repeated.

use std::rc::Rc;
use std::time::Instant;

use anyhow::bail;
use kontext::{Event, Pipeline, Request};

use super::shared::{Shared, WORKS, edit};
use super::timing::peak;
use crate::device::{self, Mark};
use crate::observe::observed;
use crate::row::Outcome;
use crate::suite::Case;

/// A finished run.
struct Times {
    seconds: f64,
    /// A step, from the first step's end to the last one's.
    step_ms: f64,
    /// All but the steps.
    outside_ms: f64,
    /// Prompts and images that were encoded.
    encoded: usize,
}

pub(super) fn cases(shared: &Rc<Shared>) -> Vec<Case<'static>> {
    let [edit, ..] = WORKS;
    let shared = Rc::clone(shared);
    vec![Case::new(format!("{}/kontext, whole run", edit.name), move || {
        whole(&shared)
    })]
}

/// Times four edits of one pipeline: its first, two cold ones, each with a prompt and an image that no run had, and the
/// last of them again, whose encodings are in the cache.
fn whole(shared: &Shared) -> anyhow::Result<Outcome> {
    let (on, [work, ..]) = (shared.device, WORKS);
    let builder = Pipeline::builder().device(on).dtype(shared.kind);
    let pipe = builder.assemble(shared.take()?)?;
    let request = |level| edit(shared.scale.side(work.side), shared.scale.steps, level);
    let mut outcome = Outcome::default();
    device::reset_peak(on)?;
    let of = |level| run(&pipe, &request(level), shared);
    let (first, _, cold, repeat) = (of(1)?, of(2)?, of(3)?, of(3)?);
    outcome.value("first_s", first.seconds);
    outcome.value("excess_s", first.seconds - cold.seconds);
    outcome.value("seconds", cold.seconds);
    outcome.value("ms", cold.step_ms);
    outcome.value("outside_ms", cold.outside_ms);
    outcome.value("repeat_s", repeat.seconds);
    outcome.value("repeat_outside_ms", repeat.outside_ms);
    outcome.value("steps", shared.scale.steps);
    for (name, times, expected) in [("the first", first, 2), ("a cold", cold, 2), ("a repeated", repeat, 0)] {
        let encoded = times.encoded;
        outcome.holds(encoded == expected, || {
            format!("{name} run encoded {encoded} prompts and images, not {expected}")
        });
    }
    peak(on, &mut outcome)?;
    Ok(outcome)
}

fn run(pipe: &Pipeline, request: &Request, shared: &Shared) -> anyhow::Result<Times> {
    let (on, mut marks, mut encoded) = (shared.device, Vec::new(), 0);
    device::synchronize(on)?;
    let begun = Instant::now();
    observed(pipe, request, |event| {
        match event {
            Event::Encoded { cached: false, .. } | Event::Reference { cached: false, .. } => encoded += 1,
            Event::Step { .. } => marks.push(Mark::now(on)?),
            _ => {}
        }
        Ok(())
    })?;
    device::synchronize(on)?;
    let seconds = begun.elapsed().as_secs_f64();
    let (Some(first), Some(last)) = (marks.first(), marks.last()) else {
        bail!("a run without steps")
    };
    if marks.len() < 2 {
        bail!("a run of one step")
    }
    let step_ms = first.until(last)? / (marks.len() - 1) as f64;
    Ok(Times {
        seconds,
        step_ms,
        outside_ms: seconds * 1e3 - step_ms * marks.len() as f64,
        encoded,
    })
}
