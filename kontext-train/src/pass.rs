//! The preparation of a transformer's passes over a batch.

use kontext_core::{Conditioning, Kind, Result};
use kontext_dit::{Dit, Run, RunInput};
use kontext_sampler::{Schedule, TIME_FACTOR};

use crate::dataset::Batch;

/// Prepares a pass of a transformer over a batch, each item at its noise level.
pub(crate) fn prepare(dit: &Dit, batch: &Batch, levels: &[f64], guidance: f64) -> Result<Run> {
    prepare_with(dit, batch, &batch.conditioning, levels, guidance)
}

/// As [`prepare`], with other prompts.
pub(crate) fn prepare_with(
    dit: &Dit,
    batch: &Batch,
    conditioning: &Conditioning,
    levels: &[f64],
    guidance: f64,
) -> Result<Run> {
    let embedded = |value: f64| (value * f64::from(TIME_FACTOR)) as f32;
    let times: Vec<f32> = levels.iter().map(|level| embedded(*level)).collect();
    dit.prepare_items(&RunInput {
        conditioning,
        target_ids: &batch.target_ids,
        context: batch.context.as_ref(),
        times: &times,
        guidance: dit.config().guidance_embed.then(|| embedded(guidance)),
    })
}

/// Prepares the steps of a schedule over a batch, in passes of this dtype.
pub(crate) fn prepare_steps(dit: &Dit, batch: &Batch, schedule: &Schedule, guidance: f64, kind: Kind) -> Result<Run> {
    let embeds = dit.config().guidance_embed;
    dit.prepare(&RunInput {
        conditioning: &batch.conditioning,
        target_ids: &batch.target_ids,
        context: batch.context.as_ref(),
        times: &schedule.embedded_times(kind),
        guidance: embeds.then(|| schedule.embedded_guidance(guidance, kind)),
    })
}
