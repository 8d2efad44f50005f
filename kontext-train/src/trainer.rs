//! A training run: one step after another, and what is written in between.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use kontext_core::{Device, Error, Kind, Result, check, device};
use kontext_dit::{Dit, RunInput};
use kontext_sampler::{References, Shift, Size};
use kontext_vae::Autoencoder;

use crate::base::Base;
use crate::curve::{Curve, Point};
use crate::dataset::{Dataset, Encoding, Fill, Order, Skipped, Store, StoreOptions};
use crate::samples::Sampler;
use crate::step::{self, Prepared};
use crate::trained::Trained;
use crate::{Activations, AdamW, Ema, Recipe, Snapshot, backward};

/// Batches that are made ready ahead of the step that needs them.
const AHEAD: usize = 3;
/// The model embeds times and guidance on this scale.
const TIME_FACTOR: f64 = 1000.0;
/// A loss this many times the usual one, for [`PATIENCE`] steps on end, has exploded.
const EXPLODED: f64 = 10.0;
const PATIENCE: usize = 20;
/// Steps whose losses make the usual one.
const USUAL_OVER: usize = 200;
/// Rows of a grid of samples.
const SAMPLES: usize = 8;

/// What happens during a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// Pictures or prompts are being encoded.
    Encoding(Fill),
    /// Something of the dataset cannot be used.
    Skipped(&'a Skipped),
    /// The data is ready: items to train on, and held-out ones.
    Ready {
        /// Items that are trained on.
        training: usize,
        /// Items that are validated.
        validation: usize,
        /// Values that are trained.
        values: i64,
        /// Steps that an earlier part of the run has done.
        resumed: u64,
    },
    /// A step is done.
    Step(StepReport),
    /// The held-out loss, by the moving average of the weights.
    Validated {
        /// Steps done.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The state was saved.
    Saved {
        /// Steps done.
        step: u64,
        /// The file.
        path: PathBuf,
    },
    /// A grid of pictures was written: reference pictures, result, truth.
    Sampled {
        /// Steps done.
        step: u64,
        /// The file.
        path: PathBuf,
    },
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done.
    pub step: u64,
    /// Steps of the run.
    pub total: u64,
    /// The loss.
    pub loss: f64,
    /// The learning rate.
    pub rate: f64,
    /// The gradient's norm before it was shortened.
    pub norm: f64,
    /// Items a second since this part of the run began.
    pub items_per_second: f64,
}

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
    recent: VecDeque<f64>,
    high: usize,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer").field("out", &self.recipe.out).field("step", &self.step).finish_non_exhaustive()
    }
}

type Observer<'a> = &'a mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>;

impl Trainer {
    /// Encodes the data, loads the model, and takes up the state in the run's folder if there is one.
    ///
    /// # Errors
    /// Those of the model's and the dataset's files; a checkpoint error where the state in the folder
    /// is of another recipe; [`Error::Cancelled`] where `observe` breaks off.
    pub fn open(recipe: Recipe, mut observe: impl FnMut(TrainEvent<'_>) -> ControlFlow<()>) -> Result<Self> {
        recipe.validate()?;
        std::fs::create_dir_all(&recipe.out).map_err(Error::io(&recipe.out))?;
        let device = recipe.device.as_deref().map_or_else(|| Ok(device::best()), device::parse)?;
        device::available(device)?;
        let kind = if device.is_cuda() { Kind::BFloat16 } else { Kind::Float };
        let base = Base::open(&recipe.model)?;
        let vae = base.vae(device)?;
        let store = open_store(&recipe, &base, &vae, device, kind, &mut observe)?;
        let trained = Trained::new(&recipe.method, &base, recipe.seed, device, kind)?;
        let mut optimizer = AdamW::new(&trained.params, recipe.optimizer)?;
        let mut ema = (recipe.ema > 0.0).then(|| Ema::new(&trained.params, recipe.ema)).transpose()?;
        let state = recipe.out.join("state.safetensors");
        let mut step = 0;
        if state.is_file() {
            let snapshot = Snapshot::open(&state)?;
            snapshot.restore(&trained.params, &mut optimizer, ema.as_mut())?;
            step = snapshot.step;
        }
        let curve = Curve::open(&recipe.out, step)?;
        let recent = VecDeque::new();
        let trainer =
            Self { recipe, base, store, vae, trained, optimizer, ema, curve, device, kind, step, recent, high: 0 };
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
            let (step, base) = (self.step, &self.base);
            let _ = base;
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
                let mut parts = Parts {
                    recipe: &self.recipe,
                    trained: &self.trained,
                    optimizer: &mut self.optimizer,
                    ema: self.ema.as_mut(),
                };
                while self.step < until {
                    let (loss, rate, norm) = parts.step(self.step, &receiver)?;
                    self.step += 1;
                    self.curve.push(Point { step: self.step, loss, rate, norm, validation: None });
                    watch(&mut self.recent, &mut self.high, self.step, loss)?;
                    let items = (self.step - first) * accumulate * self.recipe.data.batch as u64;
                    let items_per_second = items as f64 / begin.elapsed().as_secs_f64();
                    let report = StepReport { step: self.step, total, loss, rate, norm, items_per_second };
                    if observe(TrainEvent::Step(report)).is_break() {
                        return Err(Error::Cancelled { done: self.step as usize, total: total as usize });
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
        let next = |every: u64| if every == 0 { u64::MAX } else { (self.step / every + 1) * every };
        [every.save, every.validate, every.sample].into_iter().map(next).fold(self.recipe.steps, u64::min)
    }

    /// Validates, samples and saves where it is time.
    fn pause(&mut self, observe: Observer<'_>) -> Result<()> {
        let (every, step, last) = (self.recipe.every, self.step, self.step >= self.recipe.steps);
        let due = |every: u64| every > 0 && (step.is_multiple_of(every) || last);
        if due(every.validate) {
            if let Some(loss) = self.validate()? {
                self.curve.validated(loss);
                self.tell(observe, TrainEvent::Validated { step, loss })?;
            }
        }
        if due(every.sample) {
            let path = self.recipe.out.join(format!("samples-{step:06}.png"));
            self.sample(&path)?;
            self.tell(observe, TrainEvent::Sampled { step, path })?;
        }
        if due(every.save) {
            self.save(observe)?;
        }
        Ok(())
    }

    /// Writes the state, the curves and the result so far (see [`Trainer::export`]).
    fn save(&self, observe: Observer<'_>) -> Result<()> {
        let path = self.recipe.out.join("state.safetensors");
        let facts = BTreeMap::from([("recipe".to_owned(), self.recipe.to_toml()?)]);
        Snapshot::save(&path, &self.trained.params, &self.optimizer, self.ema.as_ref(), self.step, &facts)?;
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
                    let loss = tch::no_grad(|| forward(&self.trained.dit, &self.recipe, &prepared))?;
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
        let chosen: Vec<usize> = items.iter().copied().step_by((items.len() / SAMPLES).max(1)).take(SAMPLES).collect();
        let sampler = Sampler {
            dit: &self.trained.dit,
            vae: &self.vae,
            shift: self.base.shift,
            steps: self.base.steps(),
            guidance: self.recipe.objective.guidance,
            kind: self.kind,
            device: self.device,
        };
        self.averaged(|| tch::no_grad(|| sampler.grid(&self.store, &chosen, self.recipe.seed, path)))
    }

    /// Held-out items by bucket, spread evenly over the split.
    fn held_out(&self) -> Vec<Vec<usize>> {
        let data = &self.recipe.data;
        let by_bucket = self.store.by_bucket(|item| item.split == data.validation);
        let all: usize = by_bucket.iter().map(Vec::len).sum();
        let stride = all.div_ceil(data.validation_items.max(1)).max(1);
        by_bucket.into_iter().map(|items| items.into_iter().step_by(stride).collect()).collect()
    }

    fn averaged<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.ema {
            Some(ema) => self.trained.params.with_values(ema.average(), work),
            None => work(),
        }
    }

    fn tell(&self, observe: Observer<'_>, event: TrainEvent<'_>) -> Result<()> {
        let cancelled = || Error::Cancelled { done: self.step as usize, total: self.recipe.steps as usize };
        if observe(event).is_break() { Err(cancelled()) } else { Ok(()) }
    }
}

/// Encodes the dataset. The text encoders are dropped again: they are larger than the rest.
fn open_store(
    recipe: &Recipe,
    base: &Base,
    vae: &Autoencoder,
    device: Device,
    kind: Kind,
    observe: Observer<'_>,
) -> Result<Store> {
    let data = &recipe.data;
    let mut dataset = Dataset::open(&data.folder)?;
    dataset.items.retain(|item| item.split == data.split || item.split == data.validation);
    let sizes = match &data.sizes {
        Some(sizes) => sizes.iter().map(|[width, height]| Size::new(*width, *height)).collect(),
        None => base.sizes(),
    };
    let cache = data.cache.clone().unwrap_or_else(|| recipe.out.join("cache"));
    let text = base.text(kind, device)?;
    let encoding = Encoding { cache, sizes, kind, device };
    let options = StoreOptions { device, kind, references: References::Offset };
    let fill = |fill: Fill| observe(TrainEvent::Encoding(fill));
    let store = Store::new(dataset, vae, &text, &encoding, options, fill)?;
    for skipped in store.skipped() {
        if observe(TrainEvent::Skipped(skipped)).is_break() {
            return Err(Error::Cancelled { done: 0, total: recipe.steps as usize });
        }
    }
    Ok(store)
}

/// Training batches in order.
struct Source {
    order: Order,
    shift: Shift,
}

impl Source {
    fn new(recipe: &Recipe, store: &Store, shift: Shift) -> Result<Self> {
        let data = &recipe.data;
        let buckets = store.by_bucket(|item| item.split == data.split);
        let mut order = Order::new(buckets, store.weights(&data.weights), data.batch, recipe.seed);
        if order.batch(0).is_none() {
            let reason = format!("no item of split `{}` has a weight above 0; name another split", data.split);
            return Err(Error::config(&data.folder, reason));
        }
        Ok(Self { order, shift })
    }

    fn next(&mut self, store: &Store, recipe: &Recipe, index: u64) -> Result<Prepared> {
        let prepared = step::training(store, &mut self.order, &recipe.objective, self.shift, recipe.seed, index)?;
        prepared.ok_or_else(|| Error::invalid("training items", "at least one", 0))
    }
}

/// What a step changes.
struct Parts<'a> {
    recipe: &'a Recipe,
    trained: &'a Trained,
    optimizer: &'a mut AdamW,
    ema: Option<&'a mut Ema>,
}

impl Parts<'_> {
    /// One optimizer step: loss, learning rate and the gradient's norm.
    fn step(&mut self, step: u64, batches: &std::sync::mpsc::Receiver<Result<Prepared>>) -> Result<(f64, f64, f64)> {
        let Recipe { data, clip, steps, rate, recompute, objective, .. } = self.recipe;
        let activations = if *recompute { Activations::Recomputed } else { Activations::Kept };
        let params = &self.trained.params;
        let scale = 1.0 / data.accumulate as f64;
        let mut loss = 0.0;
        for _ in 0..data.accumulate {
            let stopped = |_| Error::invalid("training batches", "one for each step", "none");
            let prepared = batches.recv().map_err(stopped)??;
            let run = prepare(&self.trained.dit, self.recipe, &prepared)?;
            let of = |v: &tch::Tensor| objective.loss(v, &prepared.noise, &prepared.batch.target, &prepared.sigmas);
            loss += scale * backward(&self.trained.dit, &run, &prepared.noisy, activations, scale, of)?;
        }
        let gradient = params.gradient()?;
        let norm = gradient.f_norm()?.f_double_value(&[])?;
        if !(loss.is_finite() && norm.is_finite()) {
            params.zero_grad();
            return Err(Error::NotFinite {
                stage: format!("training step {}", step + 1),
                hint: "the last saved state is kept; resume from it with a lower rate.peak".to_owned(),
            });
        }
        let gradient = if norm > *clip { gradient.f_mul_scalar(clip / norm)? } else { gradient };
        let rate = rate.at(step, *steps);
        self.optimizer.step(params, &gradient, rate)?;
        params.zero_grad();
        if let Some(ema) = &mut self.ema {
            ema.update(params, step)?;
        }
        Ok((loss, rate, norm))
    }
}

fn prepare(dit: &Dit, recipe: &Recipe, prepared: &Prepared) -> Result<kontext_dit::Run> {
    let times: Vec<f32> = prepared.sigmas.iter().map(|sigma| (sigma * TIME_FACTOR) as f32).collect();
    let batch = &prepared.batch;
    dit.prepare_items(&RunInput {
        conditioning: &batch.conditioning,
        target_ids: &batch.target_ids,
        context: batch.context.as_ref(),
        times: &times,
        guidance: dit.config().guidance_embed.then_some((recipe.objective.guidance * TIME_FACTOR) as f32),
    })
}

/// The loss without a gradient.
fn forward(dit: &Dit, recipe: &Recipe, prepared: &Prepared) -> Result<f64> {
    let velocity = dit.forward(&prepare(dit, recipe, prepared)?, 0, &prepared.noisy)?;
    check::finite("validating", &velocity)?;
    let loss = recipe.objective.loss(&velocity, &prepared.noise, &prepared.batch.target, &prepared.sigmas)?;
    Ok(loss.f_double_value(&[])?)
}

/// Stops a run whose loss has left its usual range for good.
fn watch(recent: &mut VecDeque<f64>, high: &mut usize, step: u64, loss: f64) -> Result<()> {
    if recent.len() == USUAL_OVER {
        let usual = recent.iter().sum::<f64>() / recent.len() as f64;
        *high = if loss > EXPLODED * usual { *high + 1 } else { 0 };
        if *high >= PATIENCE {
            return Err(Error::Diverged { step, loss, usual });
        }
        if *high > 0 {
            return Ok(());
        }
        recent.pop_front();
    }
    recent.push_back(loss);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_stays_high_stops_the_run_and_an_outlier_does_not() {
        let (mut recent, mut high) = (VecDeque::new(), 0);
        for step in 0..300 {
            let loss = if step == 250 { 50.0 } else { 1.0 };
            watch(&mut recent, &mut high, step, loss).unwrap();
        }
        let result = (300..340).find_map(|step| watch(&mut recent, &mut high, step, 30.0).err().map(|e| (step, e)));
        let (step, error) = result.unwrap();
        assert_eq!(step, 300 + PATIENCE as u64 - 1);
        assert!(error.to_string().contains("30") && error.to_string().contains("usual"), "{error}");
    }
}
