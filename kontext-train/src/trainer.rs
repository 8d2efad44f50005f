//! A training run: one step after another, and what is written in between.

mod data;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use kontext_core::{Device, Error, Kind, Result};
use kontext_device::device;
use kontext_vae::Autoencoder;

use crate::base::Base;
use crate::curve::{Curve, Point};
use crate::dataset::Store;
use crate::event::Observer;
use crate::samples::Sampler;
use crate::step::{self, Prepared};
use crate::trained::Trained;
use crate::update::{Update, loss_of};
use crate::watch::Watch;
use crate::{AdamW, Ema, Recipe, Snapshot, StepReport, TrainEvent};
use data::{Source, open_store};

/// Batches that are made ready ahead of the step that needs them.
const AHEAD: usize = 3;
/// Rows of a grid of samples.
const SAMPLES: usize = 8;

/// A run, ready to go on.
pub struct Trainer {
    recipe: Recipe,
    base: Base,
    store: Store,
    vae: Autoencoder,
    trained: Trained,
    optimizer: AdamW,
    ema: Option<Ema>,
    curve: Curve,
    device: Device,
    kind: Kind,
    step: u64,
    watch: Watch,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("out", &self.recipe.out)
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}

impl Trainer {
    /// Encodes the data, loads the model, and takes up the state in the run's folder if there is one.
    ///
    /// # Errors
    /// Those of the model's and the dataset's files; a checkpoint error where the state in the folder
    /// is of another recipe; [`Error::Cancelled`] where `observe` breaks off.
    pub fn open(recipe: Recipe, mut observe: impl FnMut(TrainEvent<'_>) -> ControlFlow<()>) -> Result<Self> {
        recipe.validate()?;
        std::fs::create_dir_all(&recipe.out).map_err(Error::io(&recipe.out))?;
        let device = recipe
            .device
            .as_deref()
            .map_or_else(|| Ok(device::best()), device::parse)?;
        device::available(device)?;
        let kind = if device.is_cuda() { Kind::BFloat16 } else { Kind::Float };
        let base = Base::open(&recipe.model)?;
        let vae = base.vae(device)?;
        let store = open_store(&recipe, &base, &vae, device, kind, &mut observe)?;
        let trained = Trained::new(&recipe.method, &base, recipe.seed, device, kind)?;
        let mut optimizer = AdamW::new(&trained.params, recipe.optimizer)?;
        let mut ema = (recipe.ema > 0.0)
            .then(|| Ema::new(&trained.params, recipe.ema))
            .transpose()?;
        let state = recipe.out.join("state.safetensors");
        let mut step = 0;
        if state.is_file() {
            let snapshot = Snapshot::open(&state)?;
            snapshot.restore(&trained.params, &mut optimizer, ema.as_mut())?;
            step = snapshot.step;
        }
        let curve = Curve::open(&recipe.out, step)?;
        let watch = Watch::default();
        let trainer = Self {
            recipe,
            base,
            store,
            vae,
            trained,
            optimizer,
            ema,
            curve,
            device,
            kind,
            step,
            watch,
        };
        let count = |wanted: &str| trainer.store.items().iter().filter(|i| i.split == wanted).count();
        let ready = TrainEvent::Ready {
            training: count(&trainer.recipe.data.split),
            validation: trainer.held_out().iter().map(Vec::len).sum(),
            values: trainer.trained.params.count(),
            resumed: step,
        };
        trainer.tell(&mut observe, ready)?;
        Ok(trainer)
    }

    /// Steps that are done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The data.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Trains to the last step of the recipe, validating, sampling and saving on the way and at the
    /// end. Where `observe` breaks off, the state is saved first.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where `observe` breaks off, [`Error::NotFinite`] and [`Error::Diverged`]
    /// where training fails (the last saved state stays), and those of the files that are written.
    pub fn run(&mut self, mut observe: impl FnMut(TrainEvent<'_>) -> ControlFlow<()>) -> Result<()> {
        let observe: Observer<'_> = &mut observe;
        let result = self.steps(observe);
        if let Err(Error::Cancelled { .. }) = &result {
            self.save(observe)?;
        }
        result
    }

    fn steps(&mut self, observe: Observer<'_>) -> Result<()> {
        let (first, accumulate, total) = (self.step, self.recipe.data.accumulate as u64, self.recipe.steps);
        let begin = Instant::now();
        let mut source = Source::new(&self.recipe, &self.store, self.base.shift)?;
        while self.step < total {
            // As many steps as run without a break for validation and the like.
            let until = self.next_break();
            let step = self.step;
            let reports = std::thread::scope(|scope| -> Result<()> {
                let (sender, receiver) = sync_channel::<Result<Prepared>>(AHEAD);
                let (store, recipe, source) = (&self.store, &self.recipe, &mut source);
                scope.spawn(move || {
                    for index in step * accumulate..until * accumulate {
                        // The receiver is gone where the run has stopped.
                        if sender.send(source.next(store, recipe, index)).is_err() {
                            break;
                        }
                    }
                });
                let mut update = Update {
                    recipe: &self.recipe,
                    trained: &self.trained,
                    optimizer: &mut self.optimizer,
                    ema: self.ema.as_mut(),
                };
                while self.step < until {
                    let (loss, rate, norm) = update.step(self.step, &receiver)?;
                    self.step += 1;
                    self.curve.push(Point {
                        step: self.step,
                        loss,
                        rate,
                        norm,
                        validation: None,
                    });
                    self.watch.see(self.step, loss)?;
                    let items = (self.step - first) * accumulate * self.recipe.data.batch as u64;
                    let items_per_second = items as f64 / begin.elapsed().as_secs_f64();
                    let report = StepReport {
                        step: self.step,
                        total,
                        loss,
                        rate,
                        norm,
                        items_per_second,
                    };
                    if observe(TrainEvent::Step(report)).is_break() {
                        return Err(Error::Cancelled {
                            done: self.step as usize,
                            total: total as usize,
                        });
                    }
                }
                Ok(())
            });
            reports?;
            self.pause(observe)?;
        }
        Ok(())
    }

    /// The next step behind which something is written.
    fn next_break(&self) -> u64 {
        let every = self.recipe.every;
        let next = |every: u64| {
            self.step
                .checked_div(every)
                .map_or(u64::MAX, |passed| (passed + 1) * every)
        };
        [every.save, every.validate, every.sample]
            .into_iter()
            .map(next)
            .fold(self.recipe.steps, u64::min)
    }

    /// Validates, samples and saves where it is time.
    fn pause(&mut self, observe: Observer<'_>) -> Result<()> {
        let (every, step, last) = (self.recipe.every, self.step, self.step >= self.recipe.steps);
        let due = |every: u64| every > 0 && (step.is_multiple_of(every) || last);
        if due(every.validate)
            && let Some(loss) = self.validate()?
        {
            self.curve.validated(loss);
            self.tell(observe, TrainEvent::Validated { step, loss })?;
        }
        if due(every.sample) {
            let path = self.recipe.out.join(format!("samples-{step:06}.png"));
            self.sample(&path)?;
            self.tell(observe, TrainEvent::Sampled { step, path })?;
        }
        if due(every.save) || last {
            self.save(observe)?;
        }
        Ok(())
    }

    /// Writes the state, the curves and the result so far (see [`Trainer::export`]).
    fn save(&self, observe: Observer<'_>) -> Result<()> {
        let path = self.recipe.out.join("state.safetensors");
        let facts = BTreeMap::from([("recipe".to_owned(), self.recipe.to_toml()?)]);
        Snapshot::save(
            &path,
            &self.trained.params,
            &self.optimizer,
            self.ema.as_ref(),
            self.step,
            &facts,
        )?;
        self.curve.save()?;
        self.export()?;
        // A wish to stop is minded after the next step.
        let _ = observe(TrainEvent::Saved { step: self.step, path });
        Ok(())
    }

    /// Writes what was trained, by its moving average: `transformer` in diffusers' layout, or
    /// `lora.safetensors`.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written.
    pub fn export(&self) -> Result<()> {
        let values = match &self.ema {
            Some(ema) => self.trained.params.named(ema.average())?,
            None => self.trained.params.values()?,
        };
        let facts = BTreeMap::from([
            ("steps".to_owned(), self.step.to_string()),
            ("recipe".to_owned(), self.recipe.to_toml()?),
        ]);
        self.trained.export(&self.recipe.out, values, &self.base, facts)
    }

    /// The mean loss on the held-out items, by the moving average; `None` where there are none.
    ///
    /// # Errors
    /// Those of the model.
    pub fn validate(&self) -> Result<Option<f64>> {
        self.averaged(|| {
            let (mut sum, mut count) = (0.0, 0);
            let objective = &self.recipe.objective;
            for (bucket, items) in self.held_out().iter().enumerate() {
                for (index, items) in items.chunks(self.recipe.data.batch).enumerate() {
                    let index = (bucket as u64) << 32 | index as u64;
                    let (shift, seed) = (self.base.shift, self.recipe.seed);
                    let prepared = step::validation(&self.store, items, objective, shift, seed, index)?;
                    let loss = tch::no_grad(|| loss_of(self.trained.dit()?, &self.recipe, &prepared))?;
                    sum += loss * items.len() as f64;
                    count += items.len();
                }
            }
            Ok((count > 0).then(|| sum / count as f64))
        })
    }

    /// Writes a grid of held-out items: reference pictures, result, truth.
    ///
    /// # Errors
    /// Those of the model, and [`Error::Io`].
    pub fn sample(&self, path: &std::path::Path) -> Result<()> {
        let items: Vec<usize> = self.held_out().into_iter().flatten().collect();
        let chosen: Vec<usize> = items
            .iter()
            .copied()
            .step_by((items.len() / SAMPLES).max(1))
            .take(SAMPLES)
            .collect();
        let sampler = |dit| Sampler {
            dit,
            vae: &self.vae,
            shift: self.base.shift,
            steps: self.base.steps(),
            guidance: self.recipe.objective.guidance,
            kind: self.kind,
            device: self.device,
        };
        let grid = || sampler(self.trained.dit()?).grid(&self.store, &chosen, self.recipe.seed, path);
        self.averaged(|| tch::no_grad(grid))
    }

    /// Held-out items by bucket, spread evenly over the split.
    fn held_out(&self) -> Vec<Vec<usize>> {
        let data = &self.recipe.data;
        let by_bucket = self.store.by_bucket(|item| item.split == data.validation);
        let all: usize = by_bucket.iter().map(Vec::len).sum();
        let stride = all.div_ceil(data.validation_items.max(1)).max(1);
        by_bucket
            .into_iter()
            .map(|items| items.into_iter().step_by(stride).collect())
            .collect()
    }

    fn averaged<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.ema {
            Some(ema) => self.trained.params.with_values(ema.average(), work),
            None => work(),
        }
    }

    fn tell(&self, observe: Observer<'_>, event: TrainEvent<'_>) -> Result<()> {
        let cancelled = || Error::Cancelled {
            done: self.step as usize,
            total: self.recipe.steps as usize,
        };
        if observe(event).is_break() {
            Err(cancelled())
        } else {
            Ok(())
        }
    }
}
