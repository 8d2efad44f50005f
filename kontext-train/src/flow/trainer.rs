//! The trainer of the transformer: a recipe's run, opened or resumed, with its validation and samples.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use kontext_core::{Device, Kind, Result, Tensor};
use kontext_device::device;
use kontext_vae::Autoencoder;

use crate::base::Base;
use crate::dataset::EncodedDataset;
use crate::optim::Learner;
use crate::run::curve::{Curve, Point};
use crate::run::divergence::DivergenceGuard;
use crate::run::identity::Identity;
use crate::run::shell::{Segment, Shell, Training};

use super::data::{Batches, data_digest, open_dataset};
use super::event::{StepReport, TrainEvent};
use super::recipe::Recipe;
use super::samples::SampleGrid;
use super::step::{self, NoisyBatch};
use super::trained::Trained;
use super::update::{loss_of, update};

/// Number of batches prepared ahead of the step that uses them.
const AHEAD: usize = 3;
/// Number of rows of a sample grid.
const SAMPLES: usize = 8;

/// A training run of the transformer.
///
/// Its folder holds, in the order in which a save writes them:
///
/// | file | content |
/// | --- | --- |
/// | `cache/` | the encoded data, written before the first step |
/// | `samples-NNNNNN.png` | held-out items, written when due |
/// | `lora.safetensors` or `transformer/` | the result so far, by the moving average |
/// | `curve.svg`, `curve.csv` | the loss of each step |
/// | `state.safetensors` | values, optimizer, moving average, curve, recipe, and digests of model and data |
///
/// Each file appears whole or not at all. The state comes last, and the others follow from it: a run that is
/// killed, or whose disk is full, goes on from the last state to the files of an unbroken run, byte for byte on
/// one CPU. Complete runs write their result again.
///
/// No state is written of values that are not finite, or whose loss is not; nor, at the intervals, while the
/// loss is that of a diverging run.
///
/// A state only goes on under the recipe, the model and the data that it was trained with. Free to change are
/// the places `model`, `out`, `data.folder`, `data.cache` and `device`, and `every`, `recompute` and
/// `data.validation_items`, which do not affect the trained values. `method` cannot change. Others can if
/// [`Recipe::resume`] names them.
pub struct Trainer {
    shell: Shell,
    flow: Flow,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("out", &self.flow.recipe.out)
            .field("step", &self.shell.step())
            .finish_non_exhaustive()
    }
}

impl Trainer {
    /// Encodes the data, loads the model, and resumes from the state in the run's folder if there is one.
    ///
    /// # Errors
    /// Those of the model's and the dataset's files; a checkpoint error that names the differences if the state
    /// in the folder is of another recipe, model or data; [`kontext_core::Error::Cancelled`] if `observe` breaks
    /// off.
    pub fn open(recipe: Recipe, mut observe: impl FnMut(TrainEvent<'_>) -> ControlFlow<()>) -> Result<Self> {
        recipe.validate()?;
        let mut shell = Shell::open(&recipe.out, "state.safetensors", recipe.steps, recipe.every)?;
        let state = shell.snapshot()?;
        let mut identity = Identity::new(&recipe, state.as_ref())?;
        let device = recipe
            .device
            .as_deref()
            .map_or_else(|| Ok(device::best()), device::parse)?;
        device::available(device)?;
        let kind = if device.is_cuda() { Kind::BFloat16 } else { Kind::Float };
        let base = Base::open(&recipe.model)?;
        identity.digest("model", base.digest()?)?;
        let vae = base.vae(device)?;
        let dataset = open_dataset(&recipe, &base, &vae, device, kind, &mut observe)?;
        identity.digest("data", data_digest(&dataset, &recipe.data.folder))?;
        let mut trained = Trained::new(&recipe, &base, device, kind)?;
        let curve = Curve::open(&recipe.out, state.as_ref())?;
        if let Some(state) = &state {
            shell.resume(state, vec![&mut trained.learner])?;
            curve.restore()?;
        }
        let flow = Flow {
            guard: DivergenceGuard::after(curve.losses()),
            identity,
            recipe,
            base,
            dataset,
            vae,
            trained,
            curve,
            device,
            kind,
        };
        let count = |wanted: &str| flow.dataset.items().iter().filter(|i| i.split == wanted).count();
        let ready = TrainEvent::Ready {
            training: count(&flow.recipe.data.split),
            validation: flow.held_out().iter().map(Vec::len).sum(),
            values: flow.trained.learner.params.count(),
            resumed: shell.step(),
        };
        shell.report(&mut observe, ready)?;
        Ok(Self { shell, flow })
    }

    /// Returns the number of finished steps.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.shell.step()
    }

    /// Returns the encoded data.
    #[must_use]
    pub fn dataset(&self) -> &EncodedDataset {
        &self.flow.dataset
    }

    /// Trains to the last step of the recipe. Validates, samples and saves at its intervals and at the end,
    /// and saves if `observe` breaks off. A complete run writes its result again.
    ///
    /// # Errors
    /// [`kontext_core::Error::Cancelled`] if `observe` breaks off, [`kontext_core::Error::NotFinite`] and
    /// [`kontext_core::Error::Diverged`] if training fails (the last saved state remains), and those of the
    /// written files.
    pub fn run(&mut self, mut observe: impl FnMut(TrainEvent<'_>) -> ControlFlow<()>) -> Result<()> {
        let batches = Batches::new(&self.flow.recipe, &self.flow.dataset, self.flow.base.shift)?;
        let mut training = FlowTraining {
            flow: &mut self.flow,
            batches,
        };
        self.shell.run(&mut training, &mut observe)
    }

    /// Writes the trained values, by their moving average: `transformer` in diffusers' layout, or
    /// `lora.safetensors`.
    ///
    /// # Errors
    /// [`kontext_core::Error::NotFinite`] if training has failed, [`kontext_core::Error::Io`] if the folder
    /// cannot be written.
    pub fn export(&self) -> Result<()> {
        self.flow.export(self.step())
    }

    /// Returns the mean loss on the held-out items, by the moving average; `None` if there are none.
    ///
    /// # Errors
    /// Those of the model.
    pub fn validate(&self) -> Result<Option<f64>> {
        self.flow.validate()
    }

    /// Writes a grid of held-out items: reference images, result, target.
    ///
    /// # Errors
    /// Those of the model, and [`kontext_core::Error::Io`].
    pub fn sample(&self, path: &Path) -> Result<()> {
        self.flow.sample(path)
    }
}

/// The model, its data and the records of a run.
struct Flow {
    recipe: Recipe,
    base: Base,
    dataset: EncodedDataset,
    vae: Autoencoder,
    trained: Trained,
    identity: Identity,
    curve: Curve,
    guard: DivergenceGuard,
    device: Device,
    kind: Kind,
}

/// The training loop.
struct FlowTraining<'a> {
    flow: &'a mut Flow,
    batches: Batches,
}

impl Training for FlowTraining<'_> {
    type Event = TrainEvent<'static>;

    fn train(&mut self, segment: &mut Segment<'_, Self::Event>) -> Result<()> {
        let (batches, trained) = (&mut self.batches, &mut self.flow.trained);
        let (recipe, dataset) = (&self.flow.recipe, &self.flow.dataset);
        let accumulate = recipe.data.accumulate as u64;
        let steps = segment.steps();
        let indices = steps.start * accumulate..steps.end * accumulate;
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel::<Result<NoisyBatch>>(AHEAD);
            scope.spawn(move || {
                for index in indices {
                    // The receiver is dropped when the run stops.
                    if sender.send(batches.next(dataset, recipe, index)).is_err() {
                        break;
                    }
                }
            });
            for step in steps {
                let updated = update(trained, recipe, step, &receiver)?;
                let done = segment.finish_step(accumulate * recipe.data.batch as u64);
                self.flow.curve.push(Point {
                    step: done.step,
                    loss: updated.loss,
                    rate: updated.rate,
                    norm: updated.norm,
                    validation: None,
                });
                self.flow.guard.check(done.step, updated.loss)?;
                segment.report(TrainEvent::Step(StepReport {
                    step: done.step,
                    total: done.total,
                    loss: updated.loss,
                    rate: updated.rate,
                    norm: updated.norm,
                    items_per_second: done.items_per_second,
                }))?;
            }
            Ok(())
        })
    }

    fn learners(&self) -> Vec<&Learner> {
        vec![&self.flow.trained.learner]
    }

    fn last_loss(&mut self, step: u64) -> Result<f64> {
        let Flow {
            recipe,
            dataset,
            trained,
            ..
        } = &*self.flow;
        let last = step * recipe.data.accumulate as u64 - 1;
        let noisy = self.batches.next(dataset, recipe, last)?;
        tch::no_grad(|| loss_of(trained.dit()?, recipe, &noisy))
    }

    fn diverging(&self, step: u64) -> Option<Self::Event> {
        let usual = self.flow.guard.exceeded()?;
        Some(TrainEvent::NotSaved { step, usual })
    }

    fn facts(&self) -> BTreeMap<String, String> {
        self.flow.identity.facts().clone()
    }

    fn records(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(vec![self.flow.curve.record()?])
    }

    fn validate(&mut self, step: u64) -> Result<Option<Self::Event>> {
        let Some(loss) = self.flow.validate()? else {
            return Ok(None);
        };
        self.flow.curve.validated(loss);
        Ok(Some(TrainEvent::Validated { step, loss }))
    }

    fn sample(&mut self, step: u64, path: &Path) -> Result<Option<Self::Event>> {
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

impl Flow {
    fn export(&self, step: u64) -> Result<()> {
        self.trained.learner.check(step)?;
        let values = self.trained.learner.averaged()?;
        let facts = BTreeMap::from([
            ("steps".to_owned(), step.to_string()),
            ("recipe".to_owned(), self.recipe.to_toml()?),
        ]);
        self.trained.export(&self.recipe.out, values, &self.base, facts)
    }

    fn validate(&self) -> Result<Option<f64>> {
        self.trained.learner.with_average(|| {
            let (mut sum, mut count) = (0.0, 0);
            for (bucket, items) in self.held_out().iter().enumerate() {
                for (index, items) in items.chunks(self.recipe.data.batch).enumerate() {
                    let index = (bucket as u64) << 32 | index as u64;
                    let (shift, seed) = (self.base.shift, self.recipe.seed);
                    let noisy = step::validation(&self.dataset, items, &self.recipe.objective, shift, seed, index)?;
                    let loss = tch::no_grad(|| loss_of(self.trained.dit()?, &self.recipe, &noisy))?;
                    sum += loss * items.len() as f64;
                    count += items.len();
                }
            }
            Ok((count > 0).then(|| sum / count as f64))
        })
    }

    fn sample(&self, path: &Path) -> Result<()> {
        let items: Vec<usize> = self.held_out().into_iter().flatten().collect();
        let chosen: Vec<usize> = items
            .iter()
            .copied()
            .step_by((items.len() / SAMPLES).max(1))
            .take(SAMPLES)
            .collect();
        let sampler = |dit| SampleGrid {
            dit,
            vae: &self.vae,
            shift: self.base.shift,
            steps: self.base.steps(),
            guidance: self.recipe.objective.guidance,
            kind: self.kind,
            device: self.device,
        };
        let write = || sampler(self.trained.dit()?).write(&self.dataset, &chosen, self.recipe.seed, path);
        self.trained.learner.with_average(|| tch::no_grad(write))
    }

    /// Returns the held-out items by bucket, spread evenly over the split.
    fn held_out(&self) -> Vec<Vec<usize>> {
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
