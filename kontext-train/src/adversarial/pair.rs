//! Pairs of a real image and the student's as the critic sees them, and the terms of both losses.

use kontext_core::{Error, Kind, Result, Tensor, noise};
use kontext_dit::{Dit, Run};
use kontext_sampler::Grid;
use rand::RngExt;

use super::features::{checkpointed, features, gradient};
use super::heads::{Heads, Through, condition};
use super::losses;
use crate::backward::{Activations, backward_from, gradients_of, leaf};
use crate::dataset::Batch;
use crate::objective::{AdversarialObjective, add_noise};
use crate::pass::prepare;
use crate::run::random::{Stream, generator};

/// The random part of the critic's view of a batch: one level and one noise for both images of a pair.
#[derive(Debug)]
pub(crate) struct Renoising {
    /// Noise level of each item.
    pub(crate) levels: Vec<f64>,
    /// [B, L, C] in f32.
    pub(crate) noise: Tensor,
}

impl Renoising {
    /// Draws that of micro step `index`.
    pub(crate) fn draw(objective: &AdversarialObjective, batch: &Batch, seed: u64, index: u64) -> Result<Self> {
        let mut rng = generator(seed, Stream::Critic, index);
        let levels = objective.draw_critic(&mut rng, batch.items.len());
        let (shape, device) = (batch.target.size(), batch.target.device());
        Ok(Self {
            levels,
            noise: noise::randn(&shape, rng.random(), Kind::Float, device)?,
        })
    }
}

/// The teacher of a pair: a frozen transformer, its guidance, and the blocks whose tokens the heads see.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Teacher<'a> {
    pub(crate) dit: &'a Dit,
    pub(crate) guidance: f64,
    pub(crate) blocks: &'a [usize],
}

impl Teacher<'_> {
    /// Prepares a pass over a batch; also returns the number of its text tokens.
    fn prepare(&self, batch: &Batch, renoising: &Renoising) -> Result<(Run, i64)> {
        let run = tch::no_grad(|| prepare(self.dit, batch, &renoising.levels, self.guidance))?;
        let text = batch.conditioning.prompt_embeds.size().get(1).copied();
        Ok((run, text.unwrap_or_default()))
    }

    /// Returns an image [B, L, C] in f32 noised again, in the batch's dtype.
    fn noisy(&self, batch: &Batch, renoising: &Renoising, image: &Tensor) -> Result<Tensor> {
        let noisy = add_noise(image, &renoising.noise, &renoising.levels)?;
        Ok(noisy.f_to_kind(batch.target.kind())?)
    }

    /// Returns the features of each of these images [B, L, C] in f32, noised by the same levels and noise.
    /// `with_graph` names those through whose features a gradient passes.
    pub(crate) fn features<const N: usize>(
        &self,
        batch: &Batch,
        renoising: &Renoising,
        images: [(&Tensor, bool); N],
    ) -> Result<[Vec<Tensor>; N]> {
        let (run, text) = self.prepare(batch, renoising)?;
        let mut all = [const { Vec::new() }; N];
        for (found, (image, with_graph)) in all.iter_mut().zip(images) {
            let pass = || features(self.dit, &run, &self.noisy(batch, renoising, image)?, text, self.blocks);
            *found = if with_graph { pass()? } else { tch::no_grad(pass)? };
        }
        Ok(all)
    }
}

/// The features of a batch's images, [B, L, D] for each head.
#[derive(Debug)]
pub(crate) struct Pair {
    fake: Vec<Tensor>,
    real: Vec<Tensor>,
    condition: Tensor,
    grid: Grid,
}

/// The critic's part of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CriticLoss {
    pub(crate) loss: f64,
    pub(crate) accuracy: f64,
}

impl Pair {
    /// Takes the features of the student's images `fake` and the real ones, [B, L, C] in f32. A gradient
    /// passes through the former.
    pub(crate) fn new(
        teacher: Teacher<'_>,
        batch: &Batch,
        renoising: &Renoising,
        fake: &Tensor,
        real: &Tensor,
    ) -> Result<Self> {
        let [fake, real] = teacher.features(batch, renoising, [(fake, true), (real, false)])?;
        Ok(Self {
            fake,
            real,
            condition: condition(&batch.conditioning.pooled, &renoising.levels)?,
            grid: batch.bucket.target,
        })
    }

    /// As [`Pair::new`], and returns the adversarial term of the student's loss, a scalar, whose gradient
    /// passes through the fake images. With recomputed activations the teacher's blocks run again for it.
    pub(crate) fn with_term(
        teacher: Teacher<'_>,
        batch: &Batch,
        renoising: &Renoising,
        [fake, real]: [&Tensor; 2],
        (heads, objective): (&Heads, &AdversarialObjective),
        activations: Activations,
    ) -> Result<(Self, Tensor)> {
        if activations == Activations::Kept {
            let pair = Self::new(teacher, batch, renoising, fake, real)?;
            let term = pair.student_term(heads, objective)?;
            return Ok((pair, term));
        }
        let image = leaf(fake)?;
        let noisy = teacher.noisy(batch, renoising, &image)?;
        let (run, text) = teacher.prepare(batch, renoising)?;
        let (blocks, target) = (teacher.blocks, noisy.f_detach()?);
        let (features, inputs) = tch::no_grad(|| checkpointed(teacher.dit, &run, &target, text, blocks))?;
        let [real] = teacher.features(batch, renoising, [(real, false)])?;
        let pair = Self {
            fake: features.iter().map(leaf).collect::<Result<_>>()?,
            real,
            condition: condition(&batch.conditioning.pooled, &renoising.levels)?,
            grid: batch.bucket.target,
        };
        let term = pair.student_term(heads, objective)?;
        term.f_backward()?;
        let of_features = gradients_of(&pair.fake)?;
        let of_target = gradient(teacher.dit, &run, &target, text, blocks, &inputs, &of_features)?;
        backward_from([&noisy], &[of_target])?;
        let of_image = gradients_of([&image])?;
        let of_image = of_image.first().ok_or_else(|| Error::bug("no gradient of an image"))?;
        // The value of the term, and its gradient.
        let change = fake.f_sub(&image.f_detach()?)?.f_mul(of_image)?.f_sum(Kind::Float)?;
        Ok((pair, term.f_detach()?.f_add(&change)?))
    }

    /// Returns the adversarial term of the student's loss, a scalar: its gradient passes through the fake
    /// images.
    fn student_term(&self, heads: &Heads, objective: &AdversarialObjective) -> Result<Tensor> {
        let logits = |features| heads.logits(features, &self.condition, self.grid, Through::Inputs);
        let real = tch::no_grad(|| logits(&self.real))?;
        losses::student(objective.pairing, &real, &logits(&self.fake)?)
    }

    /// Returns the shares of items whose real image has the higher mean logit: by all heads, then by each.
    pub(crate) fn ranked_right(&self, heads: &Heads) -> Result<Vec<f64>> {
        let logits = |features| heads.logits(features, &self.condition, self.grid, Through::Inputs);
        let (real, fake) = (logits(&self.real)?, logits(&self.fake)?);
        let mut shares = vec![losses::accuracy(&real, &fake)?];
        let count = self.real.len() as i64;
        for (real, fake) in real.f_chunk(count, 1)?.iter().zip(fake.f_chunk(count, 1)?) {
            shares.push(losses::accuracy(real, &fake)?);
        }
        Ok(shares)
    }

    /// Adds the gradient of the critic's loss, times `scale`, to those of the heads; that of R1 if `with_r1`.
    pub(crate) fn critic_backward(
        &self,
        heads: &Heads,
        objective: &AdversarialObjective,
        with_r1: bool,
        scale: f64,
    ) -> Result<CriticLoss> {
        let logits = |features: &[Tensor]| heads.logits(features, &self.condition, self.grid, Through::Values);
        let detached = |features: &[Tensor]| -> Result<Vec<Tensor>> {
            features.iter().map(|feature| Ok(feature.f_detach()?)).collect()
        };
        let mut real = detached(&self.real)?;
        if with_r1 {
            let leaf = |feature: &Tensor| -> Result<Tensor> { Ok(feature.f_set_requires_grad(true)?) };
            real = real.iter().map(leaf).collect::<Result<_>>()?;
        }
        let (real_logits, fake_logits) = (logits(&real)?, logits(&detached(&self.fake)?)?);
        let mut loss = losses::critic(objective.pairing, &real_logits, &fake_logits)?;
        if objective.critic_halved {
            loss = loss.f_mul_scalar(0.5)?;
        }
        let value = loss.f_double_value(&[])?;
        if with_r1 {
            let weight = objective.r1 * objective.r1_every as f64;
            loss = loss.f_add(&losses::r1(&real_logits, &real)?.f_mul_scalar(weight)?)?;
        }
        loss.f_mul_scalar(scale)?.f_backward()?;
        Ok(CriticLoss {
            loss: value,
            accuracy: losses::accuracy(&real_logits, &fake_logits)?,
        })
    }
}
