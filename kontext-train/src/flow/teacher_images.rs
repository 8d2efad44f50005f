//! Images that the base model makes of the training examples, as the real ones of an adversarial objective.

use std::ops::ControlFlow;

use kontext_core::{Kind, Result, Tensor, noise};
use kontext_dit::Dit;
use kontext_sampler::guidance::combine;
use kontext_sampler::{Conformance, Schedule, integrate};
use rand::RngExt;

use super::event::TrainEvent;
use super::training_loop::Flow;
use crate::dataset::{Batch, Cache, EncodeProgress, weight_of};
use crate::objective::Real;
use crate::pass::prepare_steps;
use crate::run::random::{Stream, generator};
use crate::run::segment::report;

/// Name of the images in progress reports.
const WHAT: &str = "teacher's images";

/// The images, as tokens [L, C] of each item.
#[derive(Debug)]
pub(super) struct TeacherImages {
    cache: Cache,
    /// Settings and model that made them.
    made_by: String,
}

impl TeacherImages {
    /// Returns the images [B, L, C] of a batch.
    pub(super) fn stack(&self, batch: &Batch) -> Result<Tensor> {
        let image = |item: &usize| self.cache.get(&self.key(*item));
        let images = batch.items.iter().map(image).collect::<Result<Vec<_>>>()?;
        let images = Tensor::f_stack(&images, 0)?;
        Ok(images
            .f_to_device(batch.target.device())?
            .f_to_kind(batch.target.kind())?)
    }

    fn key(&self, item: usize) -> String {
        format!("{item} {}", self.made_by)
    }
}

/// Makes the images that the cache lacks, if the objective wants them: one for each item to train on.
pub(super) fn teacher_images(
    flow: &Flow,
    observe: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<Option<TeacherImages>> {
    let Some(Real::Teacher { guidance, steps }) = flow.recipe.objective.adversarial().map(|found| found.real) else {
        return Ok(None);
    };
    let (recipe, dataset, kind) = (&flow.recipe, &flow.dataset, flow.kind);
    let digests = flow.identity.files().join(", ");
    let seed = recipe.seed;
    let mut made = TeacherImages {
        cache: Cache::open(&recipe.cache().join("teacher"))?,
        made_by: format!("guidance {guidance}, {steps} steps, seed {seed}, {kind:?}, {digests}"),
    };
    let wanted =
        dataset.by_bucket(|item| item.split == recipe.data.split && weight_of(item, &recipe.data.weights) > 0.0);
    let missing = |items: Vec<usize>| -> Vec<usize> {
        let is_missing = |item: &usize| !made.cache.contains(&made.key(*item));
        items.into_iter().filter(is_missing).collect()
    };
    let wanted: Vec<Vec<usize>> = wanted.into_iter().map(missing).collect();
    let total = wanted.iter().map(Vec::len).sum();
    let mut done = 0;
    for items in wanted.iter().flat_map(|items| items.chunks(recipe.data.batch)) {
        let sampled = flow.trained.with_teacher(|dit| {
            let sampling = Sampling {
                flow,
                dit,
                guidance,
                steps,
            };
            tch::no_grad(|| sampling.images(items))
        })?;
        let named = items.iter().map(|item| made.key(*item)).zip(sampled.f_unbind(0)?);
        made.cache.append(&named.collect::<Vec<_>>())?;
        done += items.len();
        let progress = EncodeProgress {
            what: WHAT,
            done,
            total,
        };
        report(observe, TrainEvent::Encoding(progress), 0, recipe.steps)?;
    }
    Ok(Some(made))
}

struct Sampling<'a> {
    flow: &'a Flow,
    dit: &'a Dit,
    guidance: f64,
    steps: usize,
}

impl Sampling<'_> {
    /// Samples items of one size; each has its noise, independent of the others in its batch.
    fn images(&self, items: &[usize]) -> Result<Tensor> {
        let Flow {
            dataset,
            base,
            kind,
            device,
            recipe,
            ..
        } = self.flow;
        let batch = dataset.batch(items, &[])?;
        let shape = batch.target.size();
        let item_noise = |item: &usize| {
            let seed = generator(recipe.seed, Stream::Teacher, *item as u64).random();
            noise::randn(&shape[1..], seed, Kind::Float, *device)
        };
        let noise = Tensor::f_stack(&items.iter().map(item_noise).collect::<Result<Vec<_>>>()?, 0)?;
        let schedule = Schedule::new(self.steps, shape[1], base.shift, Conformance::Native)?;
        let prepared = |batch: &Batch| prepare_steps(self.dit, batch, &schedule, self.guidance, *kind);
        let positive = prepared(&batch)?;
        let negative = if self.dit.config().guidance_embed || self.guidance == 1.0 {
            None
        } else {
            let unprompted: Vec<usize> = (0..items.len()).collect();
            Some(prepared(&dataset.batch(items, &unprompted)?)?)
        };
        let velocity = |x: &Tensor, step: usize| {
            let wanted = self.dit.forward(&positive, step, x)?;
            match &negative {
                None => Ok(wanted),
                Some(negative) => combine(&wanted, &self.dit.forward(negative, step, x)?, self.guidance),
            }
        };
        let go_on = |_: &kontext_sampler::Step<'_>| ControlFlow::Continue(());
        integrate(&noise, &schedule, *kind, velocity, go_on)
    }
}
