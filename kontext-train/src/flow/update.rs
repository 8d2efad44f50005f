//! An optimizer step on the gradients of one or more batches.

use std::sync::mpsc::Receiver;

use kontext_core::{Error, Result, Stage, Tensor, check};

use super::guided::teachers_velocity;
use super::recipe::Recipe;
use super::step::NoisyBatch;
use super::trained::Trained;
use super::turn::{Critic, error_of, turn};
use crate::backward::{Activations, backward};
use crate::objective::{Objective, Weighting, flows_velocity, weighted_error};
use crate::pass::prepare;
use crate::run::CriticReport;

/// Loss, learning rate and gradient norm of an optimizer step.
pub(crate) struct Updated {
    pub(crate) loss: f64,
    /// The loss by which a divergence is detected: of one size at all noise levels.
    pub(crate) watched: f64,
    pub(crate) rate: f64,
    pub(crate) norm: f64,
    /// The critic's part, if there is one.
    pub(crate) critic: Option<CriticReport>,
}

impl Recipe {
    pub(super) fn activations(&self) -> Activations {
        if self.recompute {
            Activations::Recomputed
        } else {
            Activations::Kept
        }
    }
}

/// Takes optimizer step `step` (from 0) on the gradients of the next batches.
pub(crate) fn update(
    trained: &mut Trained,
    critic: Option<&mut Critic>,
    recipe: &Recipe,
    step: u64,
    batches: &Receiver<Result<NoisyBatch>>,
) -> Result<Updated> {
    match &recipe.objective {
        Objective::Flow(objective) => {
            let wanted = |_: &Trained, noisy: &NoisyBatch| flows_velocity(&noisy.noise, &noisy.batch.target);
            fit(trained, recipe, step, batches, objective.weighting, wanted)
        }
        Objective::Guided(objective) => {
            let wanted = |trained: &Trained, noisy: &NoisyBatch| teachers_velocity(trained, objective, noisy);
            fit(trained, recipe, step, batches, objective.weighting, wanted)
        }
        Objective::Adversarial(objective) => turn(trained, critic, recipe, objective, step, batches),
    }
}

/// Takes a step towards the velocities [B, L, C] in f32 that `wanted` returns.
fn fit(
    trained: &mut Trained,
    recipe: &Recipe,
    step: u64,
    batches: &Receiver<Result<NoisyBatch>>,
    weighting: Weighting,
    wanted: impl Fn(&Trained, &NoisyBatch) -> Result<Tensor>,
) -> Result<Updated> {
    let Recipe { data, steps, rate, .. } = recipe;
    let scale = 1.0 / data.accumulate as f64;
    let mut loss = 0.0;
    for _ in 0..data.accumulate {
        let stopped = |_| Error::bug("batches that end before the steps");
        let noisy = batches.recv().map_err(stopped)??;
        let wanted = wanted(trained, &noisy)?;
        let dit = trained.dit()?;
        let run = prepare(dit, &noisy.batch, &noisy.sigmas, noisy.guidance)?;
        let error = |velocity: &Tensor| weighted_error(weighting, velocity, &wanted, &noisy.sigmas);
        loss += scale * backward(dit, &run, &noisy.noisy_target, recipe.activations(), scale, error)?;
    }
    let rate = rate.at(step, *steps);
    let norm = trained.learner.update(step, loss, rate)?;
    Ok(Updated {
        loss,
        watched: loss,
        rate,
        norm,
        critic: None,
    })
}

/// Returns the loss without a gradient.
pub(crate) fn loss_of(trained: &Trained, recipe: &Recipe, noisy: &NoisyBatch) -> Result<f64> {
    let (wanted, weighting) = match &recipe.objective {
        Objective::Flow(objective) => (flows_velocity(&noisy.noise, &noisy.batch.target)?, objective.weighting),
        Objective::Guided(objective) => (teachers_velocity(trained, objective, noisy)?, objective.weighting),
        Objective::Adversarial(objective) => return Ok(error_of(trained.dit()?, objective, noisy)?.0),
    };
    let dit = trained.dit()?;
    let run = prepare(dit, &noisy.batch, &noisy.sigmas, noisy.guidance)?;
    let velocity = dit.forward(&run, 0, &noisy.noisy_target)?;
    check::finite(Stage::Validate, &velocity)?;
    let loss = weighted_error(weighting, &velocity, &wanted, &noisy.sigmas)?;
    Ok(loss.f_double_value(&[])?)
}

/// Returns the loss by which a divergence is detected, without a gradient.
pub(crate) fn watched_of(trained: &Trained, recipe: &Recipe, noisy: &NoisyBatch) -> Result<f64> {
    match &recipe.objective {
        Objective::Adversarial(objective) => Ok(error_of(trained.dit()?, objective, noisy)?.1),
        Objective::Flow(_) | Objective::Guided(_) => loss_of(trained, recipe, noisy),
    }
}
