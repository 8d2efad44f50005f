//! A step of guidance distillation: the student's velocity against its teacher's under classifier-free
//! guidance.

use std::sync::mpsc::Receiver;

use kontext_core::{Error, Result, Stage, Tensor, check};
use kontext_sampler::guidance::combine;

use super::recipe::Recipe;
use super::step::NoisyBatch;
use super::trained::Trained;
use super::update::Updated;
use crate::backward::backward;
use crate::objective::GuidedObjective;
use crate::pass::{prepare, prepare_with};

/// Takes optimizer step `step` (from 0) on the gradients of the next batches.
pub(crate) fn guided(
    trained: &mut Trained,
    recipe: &Recipe,
    objective: &GuidedObjective,
    step: u64,
    batches: &Receiver<Result<NoisyBatch>>,
) -> Result<Updated> {
    let accumulate = recipe.data.accumulate;
    let scale = 1.0 / accumulate as f64;
    let mut loss = 0.0;
    for _ in 0..accumulate {
        let stopped = |_| Error::bug("batches that end before the steps");
        let noisy = batches.recv().map_err(stopped)??;
        let wanted = teachers_velocity(trained, objective, &noisy)?;
        let dit = trained.dit()?;
        let run = prepare(dit, &noisy.batch, &noisy.sigmas, noisy.guidance)?;
        let velocity_loss = |velocity: &Tensor| objective.loss(velocity, &wanted, &noisy.sigmas);
        loss += scale
            * backward(
                dit,
                &run,
                &noisy.noisy_target,
                recipe.activations(),
                scale,
                velocity_loss,
            )?;
    }
    let rate = recipe.rate.at(step, recipe.steps);
    let norm = trained.learner.update(step, loss, rate)?;
    Ok(Updated {
        loss,
        watched: loss,
        rate,
        norm,
        critic: None,
    })
}

/// Returns the loss of a batch without a gradient.
pub(crate) fn guided_loss(trained: &Trained, objective: &GuidedObjective, noisy: &NoisyBatch) -> Result<f64> {
    let wanted = teachers_velocity(trained, objective, noisy)?;
    let dit = trained.dit()?;
    let run = prepare(dit, &noisy.batch, &noisy.sigmas, noisy.guidance)?;
    let velocity = dit.forward(&run, 0, &noisy.noisy_target)?;
    check::finite(Stage::Validate, &velocity)?;
    let loss = objective.loss(&velocity, &wanted, &noisy.sigmas)?;
    Ok(loss.f_double_value(&[])?)
}

/// Returns the teacher's velocity [B, L, C] at the guidance of the batch.
fn teachers_velocity(trained: &Trained, objective: &GuidedObjective, noisy: &NoisyBatch) -> Result<Tensor> {
    let NoisyBatch {
        batch,
        sigmas,
        noisy_target,
        ..
    } = noisy;
    let negative = noisy.negative.as_ref();
    let negative = negative.ok_or_else(|| Error::bug("a guided objective without the empty prompt"))?;
    trained.with_teacher(|dit| {
        tch::no_grad(|| {
            let velocity = |conditioning| {
                let run = prepare_with(dit, batch, conditioning, sigmas, objective.teacher_guidance)?;
                dit.forward(&run, 0, noisy_target)
            };
            combine(&velocity(&batch.conditioning)?, &velocity(negative)?, noisy.guidance)
        })
    })
}
