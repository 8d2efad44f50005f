//! The rectified-flow objective: density and weighting of the noise levels, dropout, and the loss.
//!
//! Source: arXiv 2506.15742 (FLUX.1 Kontext) eq. 1; arXiv 2403.03206 (Stable Diffusion 3) section 3.1;
//! huggingface/diffusers 0.38 `training_utils.py`, `compute_density_for_timestep_sampling` and
//! `compute_loss_weighting_for_sd3`.

use kontext_core::range::within;
use kontext_core::{Kind, Result, Tensor};
use kontext_sampler::Shift;
use rand::Rng;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use crate::bounds::SHARE;
use crate::run::random::{shuffle, uniform};

/// Density of the trained noise levels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Density {
    /// All levels are equally likely.
    Uniform,
    /// The logistic function of a normal variable: prefers the middle levels, which are the hard ones.
    LogitNormal {
        /// Mean of the normal variable, from -10 to 10; above 0 prefers noise. Default 0.
        #[serde(default)]
        mean: f64,
        /// Standard deviation of the normal variable, from 0.01 to 10. Default 1.
        #[serde(default = "one")]
        std: f64,
    },
    /// Heavy tails: more density at both ends or, below 0, in the middle.
    Mode {
        /// From -1 to 2 / (pi - 2), about 1.75; 1.29 is the value of Stable Diffusion 3.
        scale: f64,
    },
}

fn one() -> f64 {
    1.0
}

/// Weight of the loss at a noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// The same weight at all levels.
    #[default]
    None,
    /// `1 / sigma²`: emphasises low noise.
    SigmaSqrt,
    /// `2 / (pi (1 - 2 sigma + 2 sigma²))`: emphasises the middle.
    Cosmap,
}

/// The rectified-flow objective.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowObjective {
    /// Density of the noise levels. Default: logit-normal, mean 0 and deviation 1.
    pub density: Density,
    /// If set, shifts levels towards noise as the model's schedule does for the target's size. Default: set.
    pub resolution_shift: bool,
    /// If set, spreads the levels of a batch evenly over the density, which reduces the variance of loss and
    /// gradient. Default: set.
    pub stratified: bool,
    /// Weight of each level. Default: the same for all.
    pub weighting: Weighting,
    /// Input of models with a guidance embedding, from 0 to 100. Default 1: the value of data without
    /// guidance.
    pub guidance: f64,
    /// Share of items trained with the empty prompt, from 0 to 1. Default 0.
    pub drop_prompt: f64,
    /// Share of batches trained without their reference images, from 0 to 1. Default 0.
    pub drop_context: f64,
}

impl Default for FlowObjective {
    fn default() -> Self {
        Self {
            density: Density::LogitNormal { mean: 0.0, std: 1.0 },
            resolution_shift: true,
            stratified: true,
            weighting: Weighting::None,
            guidance: 1.0,
            drop_prompt: 0.0,
            drop_context: 0.0,
        }
    }
}

impl Density {
    /// Checks the values; `names` are those of mean, std and scale in the recipe.
    pub(super) fn validate(&self, [mean_name, std_name, scale_name]: [&'static str; 3]) -> Result<()> {
        match *self {
            Self::Uniform => Ok(()),
            Self::LogitNormal { mean, std } => {
                within(mean_name, mean, -10.0..=10.0)?;
                within(std_name, std, 0.01..=10.0).map(drop)
            }
            Self::Mode { scale } => within(scale_name, scale, -1.0..=1.75).map(drop),
        }
    }

    /// Returns the quantile `u` of the density: the level in (0, 1) with the share `u` of all levels below
    /// it. For the mode density, evaluates the published map, which can run through the levels backwards.
    #[must_use]
    pub fn quantile(&self, u: f64) -> f64 {
        match *self {
            Self::Uniform => u,
            Self::LogitNormal { mean, std } => 1.0 / (1.0 + (-(mean + std * Normal::standard().inverse_cdf(u))).exp()),
            Self::Mode { scale } => {
                let cos = (std::f64::consts::FRAC_PI_2 * u).cos();
                1.0 - u - scale * (cos * cos - 1.0 + u)
            }
        }
    }
}

impl Weighting {
    /// Returns the weight at a level in (0, 1].
    #[must_use]
    pub fn weight(self, sigma: f64) -> f64 {
        match self {
            Self::None => 1.0,
            Self::SigmaSqrt => 1.0 / (sigma * sigma),
            Self::Cosmap => 2.0 / (std::f64::consts::PI * (1.0 - 2.0 * sigma + 2.0 * sigma * sigma)),
        }
    }
}

impl FlowObjective {
    /// Checks the values.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`], naming the field.
    pub fn validate(&self) -> Result<()> {
        within("objective.guidance", self.guidance, 0.0..=100.0)?;
        within("objective.drop_prompt", self.drop_prompt, SHARE)?;
        within("objective.drop_context", self.drop_context, SHARE)?;
        let names = [
            "objective.density.mean",
            "objective.density.std",
            "objective.density.scale",
        ];
        self.density.validate(names)
    }

    /// Draws the noise levels of a batch, in (0, 1).
    pub(crate) fn draw(&self, rng: &mut impl Rng, batch: usize, target_tokens: i64, shift: Shift) -> Vec<f64> {
        let place = |rng: &mut _, index: usize| match self.stratified {
            true => (index as f64 + uniform(rng)) / batch as f64,
            false => uniform(rng),
        };
        let mut levels: Vec<f64> = (0..batch)
            .map(|index| self.density.quantile(place(rng, index)))
            .collect();
        shuffle(rng, &mut levels);
        if self.resolution_shift {
            levels = levels
                .into_iter()
                .map(|sigma| f64::from(shift.shifted(sigma as f32, target_tokens)))
                .collect();
        }
        // Clamped off zero: the weight of low noise is infinite there.
        levels.into_iter().map(|sigma| sigma.clamp(1e-4, 1.0)).collect()
    }

    /// Returns the mean over the batch of `weight * mean((velocity - (noise - image))²)`, a scalar.
    ///
    /// # Shapes
    /// `velocity`, `noise` and `image` [B, L, C]; `sigmas` one per item.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if the shapes differ.
    pub fn loss(&self, velocity: &Tensor, noise: &Tensor, image: &Tensor, sigmas: &[f64]) -> Result<Tensor> {
        weighted_error(self.weighting, velocity, &flows_velocity(noise, image)?, sigmas)
    }
}

/// Returns the velocity [B, L, C] in f32 of the straight flow from an image to noise.
pub(crate) fn flows_velocity(noise: &Tensor, image: &Tensor) -> Result<Tensor> {
    Ok(noise.f_sub(image)?.f_to_kind(Kind::Float)?)
}

/// Returns the mean over the batch of `weight * mean((velocity - wanted)²)`, a scalar; `wanted` [B, L, C] in
/// f32.
pub(crate) fn weighted_error(
    weighting: Weighting,
    velocity: &Tensor,
    wanted: &Tensor,
    sigmas: &[f64],
) -> Result<Tensor> {
    let kind = Kind::Float;
    let error = velocity.f_to_kind(kind)?.f_sub(wanted)?;
    let by_item = error.f_square()?.f_mean_dim([1_i64, 2].as_slice(), false, kind)?; // [B]
    let weights: Vec<f32> = sigmas.iter().map(|s| weighting.weight(*s) as f32).collect();
    let weights = Tensor::f_from_slice(&weights)?.f_to_device(velocity.device())?;
    Ok(by_item.f_mul(&weights)?.f_mean(kind)?)
}

/// Returns `(1 - sigma) * image + sigma * noise` [B, L, C], with one sigma per item.
///
/// # Errors
/// [`kontext_core::Error::Torch`] if the shapes differ.
pub fn add_noise(image: &Tensor, noise: &Tensor, sigmas: &[f64]) -> Result<Tensor> {
    let levels: Vec<f32> = sigmas.iter().map(|s| *s as f32).collect();
    let levels = Tensor::f_from_slice(&levels)?
        .f_to_device(image.device())?
        .f_reshape([-1, 1, 1])?;
    Ok(image.f_lerp_tensor(noise, &levels.f_to_kind(image.kind())?)?)
}

#[cfg(test)]
mod tests {
    use kontext_core::Device;

    use super::*;
    use crate::run::random::{Stream, generator};

    #[test]
    fn quantiles_of_the_densities_are_those_of_their_formulas() {
        let logit = Density::LogitNormal { mean: 0.0, std: 1.0 };
        assert!((logit.quantile(0.5) - 0.5).abs() < 1e-9);
        // The normal quantile of 0.841344746 is 1, and the logistic function of 1 is 0.731058579.
        assert!((logit.quantile(0.841_344_746) - 0.731_058_579).abs() < 1e-6);
        // With scale 0 the mode density is uniform.
        assert!((Density::Mode { scale: 0.0 }.quantile(0.3) - 0.7).abs() < 1e-12);
    }

    #[test]
    fn stratified_levels_fall_one_into_each_share() {
        let objective = FlowObjective {
            density: Density::Uniform,
            resolution_shift: false,
            ..FlowObjective::default()
        };
        let mut levels = objective.draw(&mut generator(0, Stream::Step, 0), 8, 64, Shift::dev());
        levels.sort_by(f64::total_cmp);
        for (index, level) in levels.iter().enumerate() {
            assert!((index as f64 / 8.0..(index as f64 + 1.0) / 8.0).contains(level));
        }
    }

    #[test]
    fn the_true_velocity_has_no_loss_and_zero_has_the_mean_square() {
        let full = |value: f64| Tensor::full([2, 3, 4], value, (Kind::Float, Device::Cpu));
        let (image, noise) = (full(1.0), full(3.0));
        let objective = FlowObjective::default();
        let loss = |v: f64| {
            objective
                .loss(&full(v), &noise, &image, &[0.2, 0.9])
                .unwrap()
                .double_value(&[])
        };
        assert_eq!((loss(2.0), loss(0.0)), (0.0, 4.0));
        let mixed = add_noise(&image, &noise, &[0.0, 0.5]).unwrap();
        assert_eq!(
            (mixed.double_value(&[0, 0, 0]), mixed.double_value(&[1, 0, 0])),
            (1.0, 2.0)
        );
    }
}
