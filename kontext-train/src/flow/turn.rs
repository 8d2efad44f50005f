//! A step of the adversarial objective: one update of the critic, and one of the student in its turn.

use std::cell::RefCell;
use std::sync::mpsc::Receiver;

use kontext_core::{Device, Error, Kind, Result, Stage, Tensor, check};
use kontext_dit::Dit;

use super::recipe::Recipe;
use super::step::NoisyBatch;
use super::trained::Trained;
use super::update::Updated;
use crate::adversarial::{CriticLoss, HeadSizes, Heads, Pair, Renoising, Teacher};
use crate::backward::{Activations, backward};
use crate::base::Base;
use crate::objective::AdversarialObjective;
use crate::pass::prepare;
use crate::run::CriticReport;

/// The critic of a run.
#[derive(Debug)]
pub(crate) struct Critic {
    pub(crate) heads: Heads,
    /// The blocks whose tokens the heads see.
    pub(crate) blocks: Vec<usize>,
}

impl Critic {
    /// Draws the critic of a recipe, if it trains one.
    pub(crate) fn new(recipe: &Recipe, base: &Base, device: Device) -> Result<Option<Self>> {
        let Some(objective) = recipe
            .objective
            .adversarial()
            .filter(|objective| objective.has_critic())
        else {
            return Ok(None);
        };
        Self::with_seed(objective, base, recipe.seed, device).map(Some)
    }

    /// Draws a critic for the model.
    pub(super) fn with_seed(objective: &AdversarialObjective, base: &Base, seed: u64, device: Device) -> Result<Self> {
        let blocks = objective.blocks(Self::blocks_of(base))?;
        let heads = Heads::new(objective, Self::sizes(blocks.len(), base), seed, device)?;
        Ok(Self { heads, blocks })
    }

    /// Returns the sizes of this number of heads for the model.
    pub(super) fn sizes(count: usize, base: &Base) -> HeadSizes {
        HeadSizes {
            count,
            channels: base.config.heads * base.config.head_dim,
            pooled: base.config.pooled_dim,
        }
    }

    /// Returns the number of the model's blocks.
    pub(super) fn blocks_of(base: &Base) -> usize {
        (base.config.double_blocks + base.config.single_blocks).unsigned_abs() as usize
    }
}

/// The results of a batch, outside of the graph.
#[derive(Default)]
struct Seen {
    mse: f64,
    /// Mean squared error of the velocities.
    watched: f64,
    term: f64,
    pair: Option<Pair>,
}

/// Takes optimizer step `step` (from 0) on the gradients of the next batches. The critic's gradient is of the
/// images and the values before the step, as the student's.
pub(crate) fn turn(
    trained: &mut Trained,
    mut critic: Option<&mut Critic>,
    recipe: &Recipe,
    objective: &AdversarialObjective,
    step: u64,
    batches: &Receiver<Result<NoisyBatch>>,
) -> Result<Updated> {
    // Without a critic each turn is the student's.
    let students = critic.is_none() || (step + 1).is_multiple_of(objective.student_every);
    let with_r1 = objective.r1 > 0.0 && step.is_multiple_of(objective.r1_every);
    let accumulate = recipe.data.accumulate;
    let scale = 1.0 / accumulate as f64;
    if let Some(critic) = &mut critic {
        critic.heads.advance()?;
    }
    let (mut mse, mut watched, mut term, mut loss, mut accuracy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for micro in 0..accumulate as u64 {
        let stopped = |_| Error::bug("batches that end before the steps");
        let noisy = batches.recv().map_err(stopped)??;
        let index = step * accumulate as u64 + micro;
        let seen = student_pass(trained, critic.as_deref(), recipe, objective, &noisy, index, students)?;
        mse += scale * seen.mse;
        watched += scale * seen.watched;
        term += scale * seen.term;
        if let (Some(critic), Some(pair)) = (&critic, seen.pair) {
            let found: CriticLoss = pair.critic_backward(&critic.heads, objective, with_r1, scale)?;
            loss += scale * found.loss;
            accuracy += scale * found.accuracy;
        }
    }
    let rate = recipe.rate.at(step, recipe.steps);
    let norm = if students {
        trained.learner.update(step, mse + term, rate)?
    } else {
        0.0
    };
    let report = match critic {
        Some(critic) => Some(CriticReport {
            student_loss: term,
            critic_loss: loss,
            accuracy,
            critic_norm: critic.heads.learner.update(step, loss, objective.critic_rate)?,
        }),
        None => None,
    };
    Ok(Updated {
        loss: mse,
        watched,
        rate,
        norm,
        critic: report,
    })
}

/// Runs the student on a batch, and adds the gradient of its loss to those of its values if it is its turn.
fn student_pass(
    trained: &Trained,
    critic: Option<&Critic>,
    recipe: &Recipe,
    objective: &AdversarialObjective,
    noisy: &NoisyBatch,
    index: u64,
    students: bool,
) -> Result<Seen> {
    let renoising = Renoising::draw(objective, &noisy.batch, recipe.seed, index)?;
    let seen = RefCell::new(Seen::default());
    // Without its turn there is no gradient for which anything would be computed again.
    let activations = if students {
        recipe.activations()
    } else {
        Activations::Kept
    };
    let loss = |velocity: &Tensor| {
        let pair = |critic: &Critic, fake: &Tensor, real: &Tensor| {
            trained.with_teacher(|dit| {
                let teacher = Teacher {
                    dit,
                    guidance: objective.guidance,
                    blocks: &critic.blocks,
                };
                let judged = (&critic.heads, objective);
                Pair::with_term(teacher, &noisy.batch, &renoising, [fake, real], judged, activations)
            })
        };
        student_loss(objective, noisy, velocity, critic, pair, &seen)
    };
    let dit = trained.dit()?;
    if students {
        let run = prepare(dit, &noisy.batch, &noisy.sigmas, objective.guidance)?;
        let scale = 1.0 / recipe.data.accumulate as f64;
        backward(dit, &run, &noisy.noisy_target, activations, scale, loss)?;
    } else {
        let _ = tch::no_grad(|| loss(&velocity(dit, objective, noisy)?))?;
    }
    Ok(seen.into_inner())
}

/// Returns the student's loss, a scalar, of the image that it predicts. `pair` shows that image and the real
/// one to the teacher and its critic.
fn student_loss(
    objective: &AdversarialObjective,
    noisy: &NoisyBatch,
    velocity: &Tensor,
    critic: Option<&Critic>,
    pair: impl FnOnce(&Critic, &Tensor, &Tensor) -> Result<(Pair, Tensor)>,
    seen: &RefCell<Seen>,
) -> Result<Tensor> {
    let fake = predicted(noisy, velocity)?;
    let real = noisy.batch.target.f_to_kind(Kind::Float)?;
    let difference = fake.f_sub(&real)?;
    let mse = difference.f_square()?.f_mean(Kind::Float)?;
    let mut seen = seen.borrow_mut();
    seen.mse = mse.f_double_value(&[])?;
    seen.watched = velocity_error(&difference, &noisy.sigmas)?;
    let error = mse.f_mul_scalar(objective.mse_weight)?;
    let Some(critic) = critic else { return Ok(error) };
    let (pair, term) = pair(critic, &fake, &real)?;
    seen.term = term.f_double_value(&[])?;
    seen.pair = Some(pair);
    Ok(error.f_add(&term.f_mul_scalar(objective.adversarial_weight)?)?)
}

fn velocity(dit: &Dit, objective: &AdversarialObjective, noisy: &NoisyBatch) -> Result<Tensor> {
    let run = prepare(dit, &noisy.batch, &noisy.sigmas, objective.guidance)?;
    dit.forward(&run, 0, &noisy.noisy_target)
}

/// Returns the image [B, L, C] in f32 that the student predicts in one step: `noisy - sigma * velocity`.
fn predicted(noisy: &NoisyBatch, velocity: &Tensor) -> Result<Tensor> {
    let levels: Vec<f32> = noisy.sigmas.iter().map(|sigma| *sigma as f32).collect();
    let levels = Tensor::f_from_slice(&levels)?
        .f_to_device(velocity.device())?
        .f_reshape([-1, 1, 1])?;
    let change = velocity.f_to_kind(Kind::Float)?.f_mul(&levels)?;
    Ok(noisy.noisy_target.f_to_kind(Kind::Float)?.f_sub(&change)?)
}

/// Returns the mean squared error of the velocities, by that of the predicted images less the real ones [B, L, C]:
/// at each noise level of one size, as the images' own is not.
fn velocity_error(difference: &Tensor, levels: &[f64]) -> Result<f64> {
    let by_item = difference
        .f_detach()?
        .f_square()?
        .f_mean_dim([1_i64, 2].as_slice(), false, Kind::Float)?;
    let by_item = Vec::<f64>::try_from(by_item.f_to_kind(Kind::Double)?)?;
    let errors = by_item.iter().zip(levels).map(|(error, level)| error / level.powi(2));
    Ok(errors.sum::<f64>() / levels.len().max(1) as f64)
}

/// Returns the mean squared errors of the predicted images and of their velocities, without a gradient.
pub(crate) fn error_of(dit: &Dit, objective: &AdversarialObjective, noisy: &NoisyBatch) -> Result<(f64, f64)> {
    let velocity = velocity(dit, objective, noisy)?;
    check::finite(Stage::Validate, &velocity)?;
    let error = predicted(noisy, &velocity)?.f_sub(&noisy.batch.target.f_to_kind(Kind::Float)?)?;
    let mse = error.f_square()?.f_mean(Kind::Float)?.f_double_value(&[])?;
    Ok((mse, velocity_error(&error, &noisy.sigmas)?))
}

#[cfg(test)]
mod tests;
