//! The training loop of the transformer, with its validation, its samples and the files of its saves.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use kontext_core::{Device, Error, Kind, Result, Tensor, threads};
use kontext_lora::LoraDefaults;
use kontext_vae::Autoencoder;

use crate::adversarial::{Found, Judging, Quality, of_results, of_steps, quality_record};
use crate::base::Base;
use crate::dataset::EncodedDataset;
use crate::optim::Learner;
use crate::run::curve::{Curve, Point};
use crate::run::identity::Identity;
use crate::run::segment::Segment;
use crate::run::training::Training;

use super::data::Batches;
use super::event::{StepReport, TrainEvent};
use super::method::Method;
use super::recipe::Recipe;
use super::samples::{SampleGrid, Sampling};
use super::step::{self, NoisyBatch};
use super::trained::Trained;
use super::turn::Critic;
use super::update::{loss_of, update, watched_of};

/// Number of batches prepared ahead of the step that uses them.
const AHEAD: usize = 3;
/// Number of rows of a sample grid.
const SAMPLES: usize = 8;

/// The model, its data and the records of a run.
pub(super) struct Flow {
    pub(super) recipe: Recipe,
    pub(super) base: Base,
    pub(super) dataset: EncodedDataset,
    pub(super) vae: Autoencoder,
    pub(super) trained: Trained,
    pub(super) critic: Option<Critic>,
    pub(super) identity: Identity,
    pub(super) curve: Curve,
    /// Quality of held-out results at the validations so far, under an adversarial objective.
    pub(super) history: Vec<Quality>,
    pub(super) device: Device,
    pub(super) kind: Kind,
}

/// The training loop.
pub(super) struct FlowTraining<'a> {
    pub(super) flow: &'a mut Flow,
    pub(super) batches: Batches,
}

impl Training for FlowTraining<'_> {
    type Event = TrainEvent<'static>;

    fn train(&mut self, segment: &mut Segment<'_, Self::Event>) -> Result<()> {
        let (batches, trained) = (&mut self.batches, &mut self.flow.trained);
        let critic = &mut self.flow.critic;
        let (recipe, dataset) = (&self.flow.recipe, &self.flow.dataset);
        let accumulate = recipe.data.accumulate as u64;
        let judging = recipe.objective.adversarial().map(|objective| Judging {
            patience: objective.patience,
            warmup: objective.warmup,
            pairs: recipe.data.accumulate * recipe.data.batch,
        });
        let steps = segment.steps();
        let indices = steps.start * accumulate..steps.end * accumulate;
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel::<Result<NoisyBatch>>(AHEAD);
            let work = move || {
                for index in indices {
                    // The receiver is dropped when the run stops.
                    if sender.send(batches.next(dataset, recipe, index)).is_err() {
                        break;
                    }
                }
            };
            let started = std::thread::Builder::new().spawn_scoped(scope, work);
            started.map_err(|error| threads::refusal("the next batches", &error.to_string(), None))?;
            for step in steps {
                let updated = update(trained, critic.as_mut(), recipe, step, &receiver)?;
                let done = segment.finish_step(accumulate * recipe.data.batch as u64, updated.watched)?;
                self.flow.curve.push(Point {
                    step: done.step,
                    loss: updated.loss,
                    rate: updated.rate,
                    norm: updated.norm,
                    critic: updated.critic,
                    validation: None,
                });
                segment.report(TrainEvent::Step(StepReport {
                    step: done.step,
                    total: done.total,
                    loss: updated.loss,
                    rate: updated.rate,
                    norm: updated.norm,
                    critic: updated.critic,
                    items_per_second: done.items_per_second,
                }))?;
                if let Some(judging) = judging {
                    let found = of_steps(self.flow.curve.points(), judging);
                    failing(done.step, &found, &mut |event| segment.report(event))?;
                }
            }
            Ok(())
        })
    }

    fn learners(&self) -> Vec<&Learner> {
        let critic = self.flow.critic.as_ref().map(|critic| &critic.heads.learner);
        [Some(&self.flow.trained.learner), critic]
            .into_iter()
            .flatten()
            .collect()
    }

    fn last_loss(&mut self, step: u64) -> Result<f64> {
        let Flow {
            recipe,
            dataset,
            trained,
            ..
        } = &*self.flow;
        let accumulate = recipe.data.accumulate as u64;
        let mut sum = 0.0;
        for index in (step - 1) * accumulate..step * accumulate {
            let noisy = self.batches.next(dataset, recipe, index)?;
            sum += tch::no_grad(|| watched_of(trained, recipe, &noisy))?;
        }
        Ok(sum / accumulate as f64)
    }

    fn not_saved(&self, step: u64, usual: f64) -> Option<Self::Event> {
        Some(TrainEvent::NotSaved { step, usual })
    }

    fn facts(&self) -> BTreeMap<String, String> {
        self.flow.identity.facts().clone()
    }

    fn records(&self) -> Result<Vec<(String, Tensor)>> {
        let mut records = self.flow.curve.records()?;
        if let Some(critic) = &self.flow.critic {
            records.push(critic.heads.record()?);
        }
        if !self.flow.history.is_empty() {
            records.push(quality_record(&self.flow.history)?);
        }
        Ok(records)
    }

    fn validate(&mut self, step: u64, report: &mut dyn FnMut(Self::Event) -> Result<()>) -> Result<()> {
        let Some(loss) = self.flow.validate()? else {
            return Ok(());
        };
        self.flow.curve.validated(loss);
        let quality = self.flow.quality(step)?;
        if let Some(quality) = quality {
            // A run that was cancelled at its validation has it already.
            self.flow.history.retain(|before| before.step != step);
            self.flow.history.push(quality);
        }
        report(TrainEvent::Validated { step, loss })?;
        if let (Some(objective), Some(quality)) = (self.flow.recipe.objective.adversarial(), quality) {
            report(TrainEvent::Compared(quality))?;
            let found = of_results(&self.flow.history, objective.patience, objective.real);
            failing(step, &found, report)?;
        }
        Ok(())
    }

    fn sample(&mut self, step: u64, path: &Path) -> Result<Option<Self::Event>> {
        if self.flow.held_out().iter().all(Vec::is_empty) {
            return Ok(None);
        }
        self.flow.sample(path)?;
        let path = path.to_owned();
        Ok(Some(TrainEvent::Sampled { step, path }))
    }

    fn derive(&mut self, step: u64) -> Result<()> {
        self.flow.export(step)?;
        self.flow.curve.save()
    }

    fn saved(&self, step: u64, state: &Path) -> Option<Self::Event> {
        let path = state.to_owned();
        Some(TrainEvent::Saved { step, path })
    }
}

/// Reports signs of failure that are warnings.
///
/// # Errors
/// [`Error::Collapsed`] for one that ends the run, after them; those of `report`.
fn failing(step: u64, found: &[Found], report: &mut dyn FnMut(TrainEvent<'static>) -> Result<()>) -> Result<()> {
    for warning in found.iter().filter(|found| !found.ends) {
        let sign = warning.sign;
        report(TrainEvent::Failing { step, sign })?;
    }
    if let Some(end) = found.iter().find(|found| found.ends) {
        return Err(Error::Collapsed {
            step,
            sign: end.sign.to_string(),
            remedy: end.sign.remedy().to_owned(),
        });
    }
    Ok(())
}

impl Flow {
    pub(super) fn export(&self, step: u64) -> Result<()> {
        self.trained.learner.check(step)?;
        let values = self.trained.learner.averaged()?;
        let mut facts = BTreeMap::from([
            ("steps".to_owned(), step.to_string()),
            ("recipe".to_owned(), self.recipe.to_toml()?),
        ]);
        let mut defaults = LoraDefaults::default();
        if let Some(objective) = self.recipe.objective.adversarial() {
            defaults = objective.lora_defaults(&self.base)?;
            if self.recipe.method == Method::Full {
                objective.model_defaults(&self.base)?.save(&self.recipe.out)?;
            }
        }
        defaults.scale = self.recipe.method.default_scale();
        facts.extend(defaults.to_facts());
        self.trained.export(&self.recipe.out, values, facts)
    }

    pub(super) fn validate(&self) -> Result<Option<f64>> {
        self.trained.learner.with_average(|| {
            let (mut sum, mut count) = (0.0, 0);
            for (bucket, items) in self.held_out().iter().enumerate() {
                for (index, items) in items.chunks(self.recipe.data.batch).enumerate() {
                    let index = (bucket as u64) << 32 | index as u64;
                    let (shift, seed) = (self.base.shift, self.recipe.seed);
                    let noisy = step::validation(&self.dataset, items, &self.recipe.objective, shift, seed, index)?;
                    let loss = tch::no_grad(|| loss_of(&self.trained, &self.recipe, &noisy))?;
                    sum += loss * items.len() as f64;
                    count += items.len();
                }
            }
            Ok((count > 0).then(|| sum / count as f64))
        })
    }

    pub(super) fn sample(&self, path: &Path) -> Result<()> {
        let items: Vec<usize> = self.held_out().into_iter().flatten().collect();
        let chosen: Vec<usize> = items
            .iter()
            .copied()
            .step_by((items.len() / SAMPLES).max(1))
            .take(SAMPLES)
            .collect();
        let of_base = || Sampling {
            shift: self.base.shift,
            sampler: self.base.sampler,
            steps: self.base.steps(),
            levels: None,
        };
        let objective = self.recipe.objective.adversarial();
        let sampling = objective.map_or_else(of_base, |objective| objective.sampling(&self.base));
        let sampler = |dit| SampleGrid {
            dit,
            vae: &self.vae,
            sampling: sampling.clone(),
            guidance: self.recipe.objective.guidance(),
            kind: self.kind,
            device: self.device,
        };
        let write = || sampler(self.trained.dit()?).write(&self.dataset, &chosen, self.recipe.seed, path);
        self.trained.learner.with_average(|| tch::no_grad(write))
    }

    /// Returns the held-out items by bucket, spread evenly over the split.
    pub(super) fn held_out(&self) -> Vec<Vec<usize>> {
        let data = &self.recipe.data;
        let by_bucket = self.dataset.by_bucket(|item| item.split == data.validation);
        let all: usize = by_bucket.iter().map(Vec::len).sum();
        let stride = all.div_ceil(data.validation_items.max(1)).max(1);
        by_bucket
            .into_iter()
            .map(|items| items.into_iter().step_by(stride).collect())
            .collect()
    }
}
