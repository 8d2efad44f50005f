//! One optimizer step: gradients of a few batches, and what they change.

use std::sync::mpsc::Receiver;

use kontext_core::{Error, Result, check};
use kontext_dit::{Dit, RunInput};

use crate::params::RESUME;
use crate::step::Prepared;
use crate::trained::Trained;
use crate::{Activations, AdamW, Ema, Recipe, backward};

/// The model embeds times and guidance on this scale.
const TIME_FACTOR: f64 = 1000.0;

/// What a step changes.
pub(crate) struct Update<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) trained: &'a Trained,
    pub(crate) optimizer: &'a mut AdamW,
    pub(crate) ema: Option<&'a mut Ema>,
}

impl Update<'_> {
    /// One optimizer step: loss, learning rate and the gradient's norm.
    pub(crate) fn step(&mut self, step: u64, batches: &Receiver<Result<Prepared>>) -> Result<(f64, f64, f64)> {
        let Recipe {
            data,
            clip,
            steps,
            rate,
            recompute,
            objective,
            ..
        } = self.recipe;
        let activations = if *recompute {
            Activations::Recomputed
        } else {
            Activations::Kept
        };
        let params = &self.trained.params;
        let scale = 1.0 / data.accumulate as f64;
        let mut loss = 0.0;
        for _ in 0..data.accumulate {
            let stopped = |_| Error::invalid("training batches", "one for each step", "none");
            let prepared = batches.recv().map_err(stopped)??;
            let dit = self.trained.dit()?;
            let run = prepare(dit, self.recipe, &prepared)?;
            let of = |v: &tch::Tensor| objective.loss(v, &prepared.noise, &prepared.batch.target, &prepared.sigmas);
            loss += scale * backward(dit, &run, &prepared.noisy, activations, scale, of)?;
        }
        let stage = || format!("training step {}", step + 1);
        let (gradient, norm) = params.take_gradient(loss, *clip, stage, RESUME)?;
        let rate = rate.at(step, *steps);
        self.optimizer.step(params, &gradient, rate)?;
        if let Some(ema) = &mut self.ema {
            ema.update(params, step)?;
        }
        Ok((loss, rate, norm))
    }
}

fn prepare(dit: &Dit, recipe: &Recipe, prepared: &Prepared) -> Result<kontext_dit::Run> {
    let times: Vec<f32> = prepared
        .sigmas
        .iter()
        .map(|sigma| (sigma * TIME_FACTOR) as f32)
        .collect();
    let batch = &prepared.batch;
    dit.prepare_items(&RunInput {
        conditioning: &batch.conditioning,
        target_ids: &batch.target_ids,
        context: batch.context.as_ref(),
        times: &times,
        guidance: dit
            .config()
            .guidance_embed
            .then_some((recipe.objective.guidance * TIME_FACTOR) as f32),
    })
}

/// The loss without a gradient.
pub(crate) fn loss_of(dit: &Dit, recipe: &Recipe, prepared: &Prepared) -> Result<f64> {
    let velocity = dit.forward(&prepare(dit, recipe, prepared)?, 0, &prepared.noisy)?;
    check::finite("validating", &velocity)?;
    let loss = recipe
        .objective
        .loss(&velocity, &prepared.noise, &prepared.batch.target, &prepared.sigmas)?;
    Ok(loss.f_double_value(&[])?)
}
