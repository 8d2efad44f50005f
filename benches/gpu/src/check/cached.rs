//! A repeated run, whose prompt and images come from the pipeline's cache.

use kontext::{Event, Kind, Pipeline};

use super::distance::Trace;
use super::world::{KINDS, World, edit};
use crate::observe::observed;
use crate::row::Outcome;
use crate::suite::Case;

/// Capacity of the cache in bytes.
const CAPACITY: u64 = 64 << 20;

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let case = |(prefix, kind)| Case::new(format!("{prefix}/repeated edit"), move || repeated(world, kind));
    KINDS.map(case).into()
}

/// Checks that the second run encodes nothing and gives the first one's bits.
fn repeated(world: &World, kind: Kind) -> anyhow::Result<Outcome> {
    let builder = World::builder(world.device, kind).encoding_cache(CAPACITY);
    let pipe = builder.load(world.model())?;
    let mut outcome = Outcome::default();
    let first = Trace::of(&pipe, &edit())?;
    Trace::of(&pipe, &edit())?.equal(&first, &mut outcome);
    let encoded = encoded(&pipe)?;
    outcome.holds(encoded == 0, || format!("{encoded} encodings were not in the cache"));
    Ok(outcome)
}

/// Runs an edit; returns the number of prompts and images that it encoded.
fn encoded(pipe: &Pipeline) -> anyhow::Result<usize> {
    let mut count = 0;
    observed(pipe, &edit(), |event| {
        if let Event::Encoded { cached: false, .. } | Event::Reference { cached: false, .. } = event {
            count += 1;
        }
        Ok(())
    })?;
    Ok(count)
}
