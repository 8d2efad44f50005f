//! Held-out results of a student in one step.

use kontext_core::{Kind, Result, Stage, Tensor, check, noise};
use kontext_dit::Dit;
use kontext_sampler::{Shift, unpack};
use rand::RngExt;

use super::training_loop::Flow;
use crate::adversarial::{Quality, Results, quality};
use crate::dataset::Batch;
use crate::objective::{AdversarialObjective, add_noise};
use crate::pass::prepare;
use crate::run::random::{Stream, generator};

/// The stream's part for these results: validations of the loss have lower indices.
const RESULTS: u64 = 1 << 48;

impl Flow {
    /// Measures the quality of held-out results, by the moving average; `None` without held-out items or
    /// under another objective.
    pub(super) fn quality(&self, step: u64) -> Result<Option<Quality>> {
        let Some(objective) = self.recipe.objective.adversarial() else {
            return Ok(None);
        };
        self.trained.learner.with_average(|| {
            tch::no_grad(|| {
                let mut all = Vec::new();
                for items in self.held_out() {
                    all.push(self.results(objective, &items)?);
                }
                quality(step, &all)
            })
        })
    }

    /// Makes the results of held-out items of one size; those of the first batch by two seeds.
    fn results(&self, objective: &AdversarialObjective, items: &[usize]) -> Result<Results> {
        let mut results = Results::default();
        for (index, items) in items.chunks(self.recipe.data.batch).enumerate() {
            let batch = self.dataset.batch(items, &[])?;
            let mut rng = generator(self.recipe.seed, Stream::Validation, RESULTS + index as u64);
            let made = self.one_step(objective, &batch, rng.random())?;
            if index == 0 {
                results.add_seeds(&made, &self.one_step(objective, &batch, rng.random())?)?;
            }
            // One image at a time, as the memory check assumes.
            let decode = |image: &Tensor| self.vae.decode(image);
            let decoded = |tokens: &Tensor| -> Result<Tensor> {
                let latents = unpack(tokens, batch.bucket.target)?.f_split(1, 0)?;
                let images = latents.iter().map(decode).collect::<Result<Vec<_>>>()?;
                Ok(Tensor::f_cat(&images, 0)?)
            };
            results.add(&decoded(&made)?, &decoded(&batch.target.f_to_kind(Kind::Float)?)?)?;
        }
        Ok(results)
    }

    /// Returns the images [B, L, C] in f32 that the student makes in one step.
    fn one_step(&self, objective: &AdversarialObjective, batch: &Batch, seed: u64) -> Result<Tensor> {
        let images = one_step(self.trained.dit()?, objective, batch, self.base.shift, seed)?;
        check::finite(Stage::Validate, &images)?;
        Ok(images)
    }
}

/// Returns the images [B, L, C] in f32 that a model makes in one step, from the highest noise level that the
/// student is trained at: of noise at a level of 1, below it of the noisy targets.
pub(super) fn one_step(
    dit: &Dit,
    objective: &AdversarialObjective,
    batch: &Batch,
    shift: Shift,
    seed: u64,
) -> Result<Tensor> {
    let level = objective.highest(batch.bucket.target.tokens(), shift)?;
    let levels = vec![level; batch.items.len()];
    let noise = noise::randn(&batch.target.size(), seed, Kind::Float, batch.target.device())?;
    let start = add_noise(&batch.target.f_to_kind(Kind::Float)?, &noise, &levels)?;
    let run = prepare(dit, batch, &levels, objective.guidance)?;
    let velocity = dit.forward(&run, 0, &start.f_to_kind(batch.target.kind())?)?;
    Ok(start.f_sub(&velocity.f_to_kind(Kind::Float)?.f_mul_scalar(level)?)?)
}
