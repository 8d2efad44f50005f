//! The training loop of an autoencoder: random crops, the loss of their reconstruction, and the latents'
//! statistics.

use std::collections::BTreeMap;
use std::path::Path;

use kontext_core::{Device, Kind, Result, Tensor, noise};
use kontext_nn::Weights;
use kontext_vae::{AutoencoderKl, VaeConfig};
use rand::RngExt;

use crate::optim::Learner;
use crate::run::identity::Identity;
use crate::run::random::{Stream, generator};
use crate::run::segment::Segment;
use crate::run::training::Training;

use super::event::{AutoencoderEvent, AutoencoderReport};
use super::recipe::AutoencoderRecipe;

/// The training loop, with model and data.
#[derive(Debug)]
pub(super) struct Reconstruction {
    pub(super) recipe: AutoencoderRecipe,
    pub(super) config: VaeConfig,
    pub(super) images: Vec<Tensor>, // [3, H, W], bytes
    pub(super) learner: Learner,
    pub(super) identity: Identity,
    pub(super) device: Device,
}

impl Training for Reconstruction {
    type Event = AutoencoderEvent;

    fn train(&mut self, segment: &mut Segment<'_, AutoencoderEvent>) -> Result<()> {
        for step in segment.steps() {
            let Measured { loss, psnr, latent_rms } = self.train_step(step)?;
            let done = segment.finish_step(self.recipe.batch as u64, loss)?;
            segment.report(AutoencoderEvent::Step(AutoencoderReport {
                step: done.step,
                total: done.total,
                loss,
                psnr,
                latent_rms,
                items_per_second: done.items_per_second,
            }))?;
        }
        Ok(())
    }

    fn learners(&self) -> Vec<&Learner> {
        vec![&self.learner]
    }

    fn last_loss(&mut self, step: u64) -> Result<f64> {
        Ok(tch::no_grad(|| self.loss(step - 1))?.total.f_double_value(&[])?)
    }

    fn not_saved(&self, step: u64, usual: f64) -> Option<AutoencoderEvent> {
        Some(AutoencoderEvent::NotSaved { step, usual })
    }

    fn saved(&self, step: u64, state: &Path) -> Option<AutoencoderEvent> {
        let path = state.to_owned();
        Some(AutoencoderEvent::Saved { step, path })
    }

    fn facts(&self) -> BTreeMap<String, String> {
        self.identity.facts().clone()
    }
}

/// Measurements of a step: loss, PSNR in decibels, and root mean square of the latents' means.
struct Measured {
    loss: f64,
    psnr: f64,
    latent_rms: f64,
}

/// The loss of a step's crops.
struct Loss {
    total: Tensor,
    /// Mean square of the pixels' errors.
    square: Tensor,
    /// Mean of the latents.
    mean: Tensor,
}

impl Reconstruction {
    fn loss(&self, step: u64) -> Result<Loss> {
        let batch = self.batch(step)?;
        // Convolutions cache a reordered copy of their weights, so the model is rebuilt for each step.
        let vae = AutoencoderKl::new(&self.learner.params.weights().device(self.device), &self.config)?;
        let posterior = vae.encode(&batch)?;
        let mut rng = generator(self.recipe.seed, Stream::Step, step);
        let noise = noise::randn(&posterior.mean.size(), rng.random(), Kind::Float, self.device)?;
        let result = vae.decode(&posterior.sample(&noise)?)?;
        let error = result.f_sub(&batch)?;
        let square = error.f_square()?.f_mean(Kind::Float)?;
        let loss = error.f_abs()?.f_mean(Kind::Float)?.f_add(&square)?;
        let loss = loss.f_add(&edges(&error)?.f_mul_scalar(self.recipe.edge_weight)?)?;
        let total = loss.f_add(&kl(&posterior.mean, &posterior.logvar)?.f_mul_scalar(self.recipe.kl_weight)?)?;
        let mean = posterior.mean;
        Ok(Loss { total, square, mean })
    }

    fn train_step(&mut self, step: u64) -> Result<Measured> {
        let Loss { total, square, mean } = self.loss(step)?;
        total.f_backward()?;
        let value = total.f_double_value(&[])?;
        self.learner
            .update(step, value, self.recipe.rate.at(step, self.recipe.steps))?;
        let latent_rms = mean.f_square()?.f_mean(Kind::Float)?.f_sqrt()?.f_double_value(&[])?;
        Ok(Measured {
            loss: value,
            // Pixels are in [-1, 1], so the peak is 2.
            psnr: 10.0 * (4.0 / square.f_double_value(&[])?).log10(),
            latent_rms,
        })
    }

    /// Draws random crops [B, 3, S, S] in [-1, 1].
    fn batch(&self, step: u64) -> Result<Tensor> {
        let mut rng = generator(self.recipe.seed, Stream::Order, step);
        let side = i64::from(self.recipe.crop);
        let mut crops = Vec::with_capacity(self.recipe.batch);
        for _ in 0..self.recipe.batch {
            let image = &self.images[rng.random_range(0..self.images.len())];
            let (_, height, width) = image.size3()?;
            let (y, x) = (rng.random_range(0..=height - side), rng.random_range(0..=width - side));
            crops.push(image.f_narrow(1, y, side)?.f_narrow(2, x, side)?);
        }
        scaled(&Tensor::f_stack(&crops, 0)?.f_to_device(self.device)?)
    }

    pub(super) fn result(&self) -> Result<(Vec<(String, Tensor)>, VaeConfig)> {
        /// More images do not change the statistics.
        const ENOUGH: usize = 512;
        let tensors = self.learner.averaged()?;
        let copies = tensors
            .iter()
            .map(|(name, value)| (name.clone(), value.shallow_clone()));
        let vae = AutoencoderKl::new(&Weights::from_tensors(copies), &self.config)?;
        let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
        for image in self.images.iter().step_by(self.images.len().div_ceil(ENOUGH)) {
            let (_, height, width) = image.size3()?;
            let whole = image
                .f_narrow(1, 0, height / 8 * 8)?
                .f_narrow(2, 0, width / 8 * 8)?
                .f_unsqueeze(0)?;
            let mean = tch::no_grad(|| vae.encode(&scaled(&whole.f_to_device(self.device)?)?))?.mean;
            sum += mean.f_sum(Kind::Double)?.f_double_value(&[])?;
            squares += mean.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
            count += mean.numel() as f64;
        }
        let mean = sum / count;
        let deviation = (squares / count - mean * mean).max(1e-12).sqrt();
        let config = VaeConfig {
            scaling_factor: 1.0 / deviation,
            shift_factor: mean,
            ..self.config.clone()
        };
        Ok((tensors, config))
    }
}

/// Converts bytes to [-1, 1].
fn scaled(bytes: &Tensor) -> Result<Tensor> {
    Ok(bytes.f_to_kind(Kind::Float)?.f_div_scalar(127.5)?.f_sub_scalar(1.0)?)
}

/// Returns the mean absolute difference of neighbouring errors, along both axes.
fn edges(error: &Tensor) -> Result<Tensor> {
    let along = |dim: i64| -> Result<Tensor> {
        let length = error.size()[dim as usize] - 1;
        let difference = error
            .f_narrow(dim, 1, length)?
            .f_sub(&error.f_narrow(dim, 0, length)?)?;
        Ok(difference.f_abs()?.f_mean(Kind::Float)?)
    };
    Ok(along(2)?.f_add(&along(3)?)?)
}

/// Returns the KL divergence of N(mean, exp(logvar)) from N(0, 1), in nats, averaged over all values.
fn kl(mean: &Tensor, logvar: &Tensor) -> Result<Tensor> {
    let sum = mean
        .f_square()?
        .f_add(&logvar.f_exp()?)?
        .f_sub_scalar(1.0)?
        .f_sub(logvar)?;
    Ok(sum.f_mul_scalar(0.5)?.f_mean(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normal_posterior_has_no_distance() {
        let zeros = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        assert_eq!(kl(&zeros, &zeros).unwrap().double_value(&[]), 0.0);
        assert!((kl(&(&zeros + 2.0), &zeros).unwrap().double_value(&[]) - 2.0).abs() < 1e-6);
    }
}
