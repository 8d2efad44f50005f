//! The teacher's features: the target's tokens after its blocks.

use kontext_core::{Conditioning, Error, Kind, Result, Tensor};
use kontext_dit::{Dit, Run, RunInput, State};
use kontext_sampler::TIME_FACTOR;

use crate::dataset::Batch;

/// Term of the layer norm's root, as in the transformer's blocks.
const NORM_EPS: f64 = 1e-6;

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

/// Returns the target's tokens [B, L, D] in f32 after each of these blocks, each token normalised. The blocks are
/// rising; those after the last one are not computed.
pub(crate) fn features(dit: &Dit, run: &Run, target: &Tensor, text: i64, blocks: &[usize]) -> Result<Vec<Tensor>> {
    let length = target.size()[1];
    let mut state = dit.enter(run, target)?;
    let last = blocks.last().copied().unwrap_or_default();
    let mut features = Vec::with_capacity(blocks.len());
    for (index, piece) in dit.pieces(run, 0)?.into_iter().enumerate().take(last + 1) {
        state = piece.forward(&state, &piece.modulation())?;
        if blocks.contains(&index) {
            features.push(normalised(&target_tokens(&state, text, length)?)?);
        }
    }
    Ok(features)
}

fn target_tokens(state: &State, text: i64, length: i64) -> Result<Tensor> {
    Ok(match state {
        State::Streams { img, .. } => img.f_narrow(1, 0, length)?,
        State::Joined(joined) => joined.f_narrow(1, text, length)?,
        State::Target(target) => target.shallow_clone(),
        State::Velocity(_) => return Err(Error::bug("features of the velocity")),
    })
}

fn normalised(tokens: &Tensor) -> Result<Tensor> {
    let tokens = tokens.f_to_kind(Kind::Float)?;
    let width = tokens.size()[2];
    Ok(tokens.f_layer_norm([width], None::<&Tensor>, None::<&Tensor>, NORM_EPS, false)?)
}
