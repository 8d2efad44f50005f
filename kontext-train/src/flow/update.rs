//! An optimizer step on the gradients of one or more batches.

use std::sync::mpsc::Receiver;

use kontext_core::{Error, Result, Stage, check};
use kontext_dit::{Dit, RunInput};
use kontext_sampler::TIME_FACTOR;

use super::backward::{Activations, backward};
use super::recipe::Recipe;
use super::step::NoisyBatch;
use super::trained::Trained;

/// Loss, learning rate and gradient norm of an optimizer step.
pub(crate) struct Updated {
    pub(crate) loss: f64,
    pub(crate) rate: f64,
    pub(crate) norm: f64,
}

/// Takes optimizer step `step` (from 0) on the gradients of the next batches.
pub(crate) fn update(
    trained: &mut Trained,
    recipe: &Recipe,
    step: u64,
    batches: &Receiver<Result<NoisyBatch>>,
) -> Result<Updated> {
    let Recipe {
        data,
        steps,
        rate,
        recompute,
        objective,
        ..
    } = recipe;
    let activations = if *recompute {
        Activations::Recomputed
    } else {
        Activations::Kept
    };
    let scale = 1.0 / data.accumulate as f64;
    let mut loss = 0.0;
    for _ in 0..data.accumulate {
        let stopped = |_| Error::bug("batches that end before the steps");
        let noisy = batches.recv().map_err(stopped)??;
        let dit = trained.dit()?;
        let run = prepare(dit, recipe, &noisy)?;
        let velocity_loss = |v: &tch::Tensor| objective.loss(v, &noisy.noise, &noisy.batch.target, &noisy.sigmas);
        loss += scale * backward(dit, &run, &noisy.noisy_target, activations, scale, velocity_loss)?;
    }
    let rate = rate.at(step, *steps);
    let norm = trained.learner.update(step, loss, rate)?;
    Ok(Updated { loss, rate, norm })
}

fn prepare(dit: &Dit, recipe: &Recipe, noisy: &NoisyBatch) -> Result<kontext_dit::Run> {
    let embedded = |value: f64| (value * f64::from(TIME_FACTOR)) as f32;
    let times: Vec<f32> = noisy.sigmas.iter().map(|sigma| embedded(*sigma)).collect();
    let batch = &noisy.batch;
    dit.prepare_items(&RunInput {
        conditioning: &batch.conditioning,
        target_ids: &batch.target_ids,
        context: batch.context.as_ref(),
        times: &times,
        guidance: dit.config().guidance_embed.then(|| embedded(recipe.objective.guidance)),
    })
}

/// Returns the loss without a gradient.
pub(crate) fn loss_of(dit: &Dit, recipe: &Recipe, noisy: &NoisyBatch) -> Result<f64> {
    let velocity = dit.forward(&prepare(dit, recipe, noisy)?, 0, &noisy.noisy_target)?;
    check::finite(Stage::Validate, &velocity)?;
    let loss = recipe
        .objective
        .loss(&velocity, &noisy.noise, &noisy.batch.target, &noisy.sigmas)?;
    Ok(loss.f_double_value(&[])?)
}
