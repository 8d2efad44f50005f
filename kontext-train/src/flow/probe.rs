//! The noise levels at which a critic's heads distinguish the student's images from real ones.

use std::ops::ControlFlow;

use kontext_core::range::within;
use kontext_core::{Error, Kind, Result, Stage, noise};
use kontext_dit::Dit;
use rand::RngExt;

use super::check::{Opened, compute_kind};
use super::data::encoded;
use super::event::TrainEvent;
use super::probe_report::{ProbeReport, ProbeRow};
use super::quality::one_step;
use super::recipe::Recipe;
use super::turn::Critic;
use crate::adversarial::{Pair, Renoising, Teacher};
use crate::dataset::{EncodeProgress, EncodedDataset, weight_of};
use crate::memory::Need;
use crate::objective::{AdversarialObjective, Real};
use crate::run::random::{Stream, generator, shuffle};
use crate::run::segment::report;

/// Bytes of an f32.
const F32: u128 = 4;

/// Levels and effort of a probe.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeOptions {
    /// Noise levels, at most 100, each from 0.001 to 0.999. Default 0.02, 0.1, 0.25, 0.5, 0.73, 0.9.
    pub levels: Vec<f64>,
    /// Training examples of the heads, from 1 to 100000. Default 560.
    pub training: usize,
    /// Held-out examples, from 1 to 100000. Default 160: a share has a standard error of 0.04 at most.
    pub held_out: usize,
    /// Steps of the heads at each level, from 1 to 100000. Default 120.
    pub steps: usize,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            levels: vec![0.02, 0.1, 0.25, 0.5, 0.73, 0.9],
            training: 560,
            held_out: 160,
            steps: 120,
        }
    }
}

impl ProbeOptions {
    fn validate(&self) -> Result<()> {
        within("number of levels", self.levels.len(), 1..=100)?;
        for level in &self.levels {
            within("level", *level, 0.001..=0.999)?;
        }
        within("training", self.training, 1..=100_000)?;
        within("held_out", self.held_out, 1..=100_000)?;
        within("steps", self.steps, 1..=100_000).map(drop)
    }
}

/// Trains a critic's heads at some noise levels, each on its own, to rank real images above those that the
/// base model makes in one step, and measures them on held-out examples. The recipe's objective must be
/// adversarial; its heads and its loss are those of the recipe.
///
/// The base model's images are made from the highest noise level that the student is trained at, by
/// [`AdversarialObjective::shares`]. The features of all examples at one level are in memory. `observe` gets the
/// recipe's warnings, the events of encoding, and those of a step for each finished level as
/// [`TrainEvent::Encoding`].
///
/// # Errors
/// Those of [`Recipe::check`]; [`Error::InvalidArgument`] for options out of their ranges, for another
/// objective, for [`Real::Teacher`] and for data without a held-out example; [`Error::Memory`] if the features do not fit;
/// [`Error::Cancelled`] if `observe` breaks off.
///
/// Source of the method: ranking by a linear probe's kind of training on frozen features; the levels' law is
/// LADD's (arXiv 2403.12015 section 4), which chooses it by ablation.
pub fn probe(
    recipe: &Recipe,
    options: &ProbeOptions,
    mut observe: impl FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<ProbeReport> {
    options.validate()?;
    let objective = recipe.objective.adversarial().ok_or_else(|| {
        let expected = "\"adversarial\", whose critic is probed";
        Error::invalid("objective.kind", expected, "another one")
    })?;
    if objective.real != Real::Data {
        let expected = "\"data\": a probe shows the critic the data's images";
        return Err(Error::invalid("objective.real.kind", expected, "\"teacher\""));
    }
    let Opened {
        device,
        base,
        dataset,
        warnings,
        ..
    } = recipe.opened()?;
    for warning in &warnings {
        report(&mut observe, TrainEvent::Warning(warning), 0, recipe.steps)?;
    }
    let kind = compute_kind(device);
    let dataset = {
        let vae = base.vae(device)?;
        encoded(recipe, &base, dataset, &vae, device, kind, &mut observe)?
    };
    let weights = base.transformer()?.kind(kind).device(device);
    let dit = Dit::new(&weights, &base.config, |_| ())?;
    weights.finish()?;
    let blocks = objective.blocks(Critic::blocks_of(&base))?;
    let probing = Probing {
        recipe,
        objective,
        dataset: &dataset,
        dit: &dit,
        shift: base.shift,
        blocks: &blocks,
    };
    let training = probing.batches(&recipe.data.split, options.training, 0);
    let held_out = probing.batches(&recipe.data.validation, options.held_out, 1);
    for (batches, name) in [(&training, &recipe.data.split), (&held_out, &recipe.data.validation)] {
        if batches.is_empty() {
            return Err(Error::config(
                &recipe.data.folder,
                format!("no example of split `{name}` to probe with"),
            ));
        }
    }
    probing.check_memory(&training, &held_out, base.config.width(), device)?;
    let mut rows = Vec::new();
    for (done, level) in options.levels.iter().enumerate() {
        let mut critic = Critic::with_seed(objective, &base, recipe.seed, device)?;
        rows.push(probing.row(&mut critic, *level, [&training, &held_out], options.steps)?);
        let progress = EncodeProgress {
            what: "levels",
            done: done + 1,
            total: options.levels.len(),
        };
        report(&mut observe, TrainEvent::Encoding(progress), 0, recipe.steps)?;
    }
    Ok(ProbeReport { blocks, rows })
}

struct Probing<'a> {
    recipe: &'a Recipe,
    objective: &'a AdversarialObjective,
    dataset: &'a EncodedDataset,
    dit: &'a Dit,
    shift: kontext_sampler::Shift,
    blocks: &'a [usize],
}

impl Probing<'_> {
    /// Draws up to `count` examples of a split, in batches of one size each.
    fn batches(&self, split: &str, count: usize, stream: u64) -> Vec<Vec<usize>> {
        let data = &self.recipe.data;
        let used = |item: &crate::dataset::Item| item.split == split && weight_of(item, &data.weights) > 0.0;
        let mut batches = Vec::new();
        let mut rng = generator(self.recipe.seed, Stream::Probe, stream);
        let buckets = self.dataset.by_bucket(used);
        let all: usize = buckets.iter().map(Vec::len).sum();
        for mut items in buckets {
            shuffle(&mut rng, &mut items);
            // A share of each size.
            items.truncate((items.len() * count).div_ceil(all.max(1)));
            batches.extend(items.chunks(data.batch).map(<[usize]>::to_vec));
        }
        batches
    }

    fn check_memory(
        &self,
        training: &[Vec<usize>],
        held_out: &[Vec<usize>],
        width: i64,
        device: kontext_core::Device,
    ) -> Result<()> {
        let mut tokens = 0;
        for items in training.iter().chain(held_out) {
            let length = self.dataset.batch(&items[..1], &[])?.target.size()[1];
            tokens += items.len() as u128 * u128::from(length.unsigned_abs());
        }
        let work = 2 * tokens * self.blocks.len() as u128 * u128::from(width.unsigned_abs()) * F32;
        let need = Need {
            values: 0,
            average: false,
            work,
        };
        let stage = Stage::Other("probing the critic");
        need.check(device, stage, ["", "take fewer examples, or fewer objective.blocks"])
    }

    /// Trains the heads at a level, and measures them.
    fn row(
        &self,
        critic: &mut Critic,
        level: f64,
        [training, held_out]: [&[Vec<usize>]; 2],
        steps: usize,
    ) -> Result<ProbeRow> {
        let pairs = |batches: &[Vec<usize>], stream: u64| -> Result<Vec<Pair>> {
            let pair = |(index, items): (usize, &Vec<usize>)| self.pair(items, level, (stream << 32) + index as u64);
            batches.iter().enumerate().map(pair).collect()
        };
        let (training, held_out_pairs) = (pairs(training, 1)?, pairs(held_out, 2)?);
        let mut loss = f64::NAN;
        for step in 0..steps {
            critic.heads.advance()?;
            let found = training[step % training.len()].critic_backward(&critic.heads, self.objective, false, 1.0)?;
            loss = found.loss;
            let rate = self.objective.critic_rate;
            critic.heads.learner.update(step as u64, loss, rate)?;
        }
        let count: usize = held_out.iter().map(Vec::len).sum();
        let mut right = vec![0.0; 1 + self.blocks.len()];
        for (pair, items) in held_out_pairs.iter().zip(held_out) {
            let found = tch::no_grad(|| pair.ranked_right(&critic.heads))?;
            for (sum, share) in right.iter_mut().zip(found) {
                *sum += share * items.len() as f64;
            }
        }
        let mut shares = right.into_iter().map(|right| right / count.max(1) as f64);
        Ok(ProbeRow {
            level,
            loss,
            accuracy: shares.next().unwrap_or_default(),
            by_block: shares.collect(),
            pairs: count,
        })
    }

    /// Returns the features of a batch's real images and of those that the model makes in one step.
    fn pair(&self, items: &[usize], level: f64, index: u64) -> Result<Pair> {
        let batch = self.dataset.batch(items, &[])?;
        let mut rng = generator(self.recipe.seed, Stream::Probe, index);
        let (start, noise) = (rng.random(), rng.random());
        let renoising = Renoising {
            levels: vec![level; items.len()],
            noise: noise::randn(&batch.target.size(), noise, Kind::Float, batch.target.device())?,
        };
        tch::no_grad(|| {
            let fake = one_step(self.dit, self.objective, &batch, self.shift, start)?;
            let teacher = Teacher {
                dit: self.dit,
                guidance: self.objective.guidance,
                blocks: self.blocks,
            };
            let real = batch.target.f_to_kind(Kind::Float)?;
            Pair::new(teacher, &batch, &renoising, &fake, &real)
        })
    }
}
