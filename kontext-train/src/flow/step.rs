//! The random part of a training step: batch, noise levels and noise.

use kontext_core::{Conditioning, Kind, Result, Tensor, noise};
use kontext_sampler::Shift;
use rand::RngExt;

use crate::dataset::{Batch, BatchSampler, EncodedDataset};
use crate::objective::{Objective, add_noise};
use crate::run::random::{Stream, generator, happens};

use super::recipe::Recipe;
use super::teacher_images::TeacherImages;

/// The step of a validation's noise levels: after any warm-up.
const AFTER_WARMUP: u64 = u64::MAX;

/// A batch with its noise: all random inputs of a step.
#[derive(Debug)]
pub(crate) struct NoisyBatch {
    pub(crate) batch: Batch,
    /// Noise level of each item.
    pub(crate) sigmas: Vec<f64>,
    /// [B, L, 4 C].
    pub(crate) noise: Tensor,
    /// Noisy targets [B, L, 4 C].
    pub(crate) noisy_target: Tensor,
    /// Input of models with a guidance embedding.
    pub(crate) guidance: f64,
    /// The empty prompt of each item, for an objective with a guided teacher.
    pub(crate) negative: Option<Conditioning>,
}

/// Draws the batch of micro step `index`, with the targets that the teacher `made` if it did, and drops
/// prompts and reference images at random.
///
/// Returns `None` if there is no data.
pub(crate) fn training(
    dataset: &EncodedDataset,
    sampler: &mut BatchSampler,
    made: Option<&TeacherImages>,
    recipe: &Recipe,
    shift: Shift,
    index: u64,
) -> Result<Option<NoisyBatch>> {
    let objective = &recipe.objective;
    let Some(part) = sampler.batch(index) else {
        return Ok(None);
    };
    let mut rng = generator(recipe.seed, Stream::Step, index);
    let unprompted: Vec<usize> = (0..part.items.len())
        .filter(|_| happens(&mut rng, objective.drop_prompt()))
        .collect();
    let mut batch = dataset.batch(&part.items, &unprompted)?;
    if happens(&mut rng, objective.drop_context()) {
        batch.context = None;
    }
    if let Some(made) = made {
        batch.target = made.stack(&batch)?;
    }
    let step = index / recipe.data.accumulate.max(1) as u64;
    let negative = negative(dataset, &part.items, objective)?;
    prepare(batch, negative, objective, step, shift, &mut rng).map(Some)
}

/// Returns the `index`-th batch of held-out items, with the same noise levels and noise at every validation.
pub(crate) fn validation(
    dataset: &EncodedDataset,
    items: &[usize],
    objective: &Objective,
    shift: Shift,
    seed: u64,
    index: u64,
) -> Result<NoisyBatch> {
    prepare(
        dataset.batch(items, &[])?,
        negative(dataset, items, objective)?,
        objective,
        AFTER_WARMUP,
        shift,
        &mut generator(seed, Stream::Validation, index),
    )
}

fn negative(dataset: &EncodedDataset, items: &[usize], objective: &Objective) -> Result<Option<Conditioning>> {
    if objective.guided().is_none() {
        return Ok(None);
    }
    let all: Vec<usize> = (0..items.len()).collect();
    Ok(Some(dataset.batch(items, &all)?.conditioning))
}

fn prepare(
    batch: Batch,
    negative: Option<Conditioning>,
    objective: &Objective,
    step: u64,
    shift: Shift,
    rng: &mut impl rand::Rng,
) -> Result<NoisyBatch> {
    let sigmas = objective.draw(rng, batch.items.len(), step, batch.bucket.target.tokens(), shift)?;
    let shape = batch.target.size();
    // Drawn in f32 on the CPU, so that a run has the same noise on every device.
    let noise =
        noise::randn(&shape, rng.random(), Kind::Float, batch.target.device())?.f_to_kind(batch.target.kind())?;
    let noisy_target = add_noise(&batch.target, &noise, &sigmas)?;
    Ok(NoisyBatch {
        batch,
        sigmas,
        noise,
        noisy_target,
        guidance: objective.draw_guidance(rng),
        negative,
    })
}
