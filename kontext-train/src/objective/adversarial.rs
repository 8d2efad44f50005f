//! The adversarial objective: levels of the student, law and heads of the critic, terms of the losses.
//!
//! Source: arXiv 2403.12015 (LADD: levels, re-noising law, heads on a frozen teacher); NVlabs/Sana
//! `train_scm_ladd.py` (SANA-Sprint: R1 on the heads' inputs, halved loss); arXiv 1807.00734 (relativistic
//! pairs).

use kontext_core::range::within;
use kontext_core::{Error, Result};
use kontext_sampler::{Conformance, Schedule, Shift};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::flow::Density;
use crate::bounds::{DECAY, SHARE, STEPS, STEPS_OR_NONE, TERM};
use crate::run::random::uniform;

/// Steps of the schedule whose noise levels are the default ones of the student.
const DEFAULT_LEVELS: usize = 4;
/// Models of up to this number of blocks have a head after each; others have [`SPREAD`] of them.
const EACH: usize = 8;
/// Number of heads spread over the blocks of a large model.
const SPREAD: usize = 6;
/// Groups of a head's norms.
pub(crate) const GROUPS: i64 = 8;

/// Loss of pairs of a real image and the student's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// `softplus(-(real - fake))` for the critic and `softplus(-(fake - real))` for the student: images of
    /// the same condition, noise and level are compared (arXiv 1807.00734). For data with a true answer for
    /// each item, as edits have.
    #[default]
    Relativistic,
    /// `max(0, 1 - real) + max(0, 1 + fake)` for the critic and `-fake` for the student, as LADD was
    /// published.
    Hinge,
}

/// The real images, with which the critic compares the student's.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Real {
    /// Those of the data.
    #[default]
    Data,
    /// The base model's own, one for each example, made once before the training and kept in the run's cache:
    /// for text to image, where the data has no single true answer.
    Teacher {
        /// Guidance of the base model, from 0 to 100: by its embedding, or by true CFG against the empty
        /// prompt for a model without one. Default 2.5.
        #[serde(default = "guidance")]
        guidance: f64,
        /// Euler steps, from 1 to 1000. Default 28.
        #[serde(default = "teacher_steps")]
        steps: usize,
    },
}

fn guidance() -> f64 {
    2.5
}

fn teacher_steps() -> usize {
    28
}

/// The adversarial objective: latent adversarial diffusion distillation (LADD, arXiv 2403.12015).
///
/// The student, which starts as the base model, predicts the image from a few noise levels in one step. A
/// critic, small heads on the features of the frozen base model (the teacher), learns to rank real images
/// above the student's, both noised again by the same noise; the student learns to be ranked higher.
///
/// The defaults are for an edit model of any size, except `warmup` and `critic_density`: choose the latter by
/// [`crate::probe()`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdversarialObjective {
    /// The student's noise levels, from 1 to 64, falling, each from 0.001 to 1. Default: the sigmas of 4
    /// steps by the model's own schedule for the target's size.
    pub levels: Option<Vec<f64>>,
    /// Share of each level, from 0 to 1, in any scale. Default 0.7, 0.1, 0.1, 0.1.
    pub shares: Vec<f64>,
    /// Share of each level during the warm-up, without which it has no effect. Default 0, 0, 0.5, 0.5: the
    /// lower levels are the easy ones.
    pub warmup_shares: Vec<f64>,
    /// Steps of the warm-up, up to 10^9. Default 500, as published; 20 are enough for a model of 5 million
    /// values.
    pub warmup: u64,
    /// Density of the levels at which real and fake images are noised for the critic. Default: logit-normal,
    /// mean 1 and deviation 1, as published: for a student that is far from the data. Mean -2 for one that is
    /// near.
    pub critic_density: Density,
    /// Blocks after which the critic has a head, counted from 0, double blocks first; rising. Default: all of
    /// up to 8 blocks, and 6 of more, spread evenly.
    pub blocks: Option<Vec<usize>>,
    /// Channels of a head, a multiple of 8 from 8 to 1024. Default 64.
    pub head_width: i64,
    /// Loss of a pair. Default: relativistic.
    pub pairing: Pairing,
    /// Real images. Default: those of the data, with which validations compare under either choice.
    pub real: Real,
    /// Weight of the adversarial term in the student's loss, from 0 to 1000; 0 trains no critic, and a resumed
    /// run gets and loses none. Default 1.
    pub adversarial_weight: f64,
    /// Weight of the mean squared error to the real image, from 0 to 1000. Default 0; 0.2 to 1 where fidelity
    /// counts.
    pub mse_weight: f64,
    /// Weight of R1, the squared gradient of the real image's logits with respect to the heads' inputs, from
    /// 0 to 1000. Default 1e-4.
    pub r1: f64,
    /// Steps from one R1 term to the next, from 1; its weight is multiplied by them. Default 4.
    pub r1_every: u64,
    /// Learning rate of the critic, constant, from 0 to 1. Default 2e-3.
    pub critic_rate: f64,
    /// Decay rate of the first moment of the critic's optimizer, from 0 to 0.9999999. Default 0.
    pub critic_beta1: f64,
    /// Decay rate of the second moment of the critic's optimizer, from 0 to 0.9999999. Default 0.99.
    pub critic_beta2: f64,
    /// If set, the critic's loss is halved, as SANA-Sprint does. Default: not set.
    pub critic_halved: bool,
    /// The critic is updated at each step, the student at one in this many, from 1. Default 1.
    pub student_every: u64,
    /// Input of models with a guidance embedding, for student and teacher, from 0 to 100. Default 2.5.
    pub guidance: f64,
    /// Steps over which a sign of failure ends the run, up to 10^9; half of them are a warning. 0 only warns,
    /// after 150 steps. Default 300. See [`crate::Sign`].
    pub patience: u64,
}

impl Default for AdversarialObjective {
    fn default() -> Self {
        Self {
            levels: None,
            shares: vec![0.7, 0.1, 0.1, 0.1],
            warmup_shares: vec![0.0, 0.0, 0.5, 0.5],
            warmup: 500,
            critic_density: Density::LogitNormal { mean: 1.0, std: 1.0 },
            blocks: None,
            head_width: 64,
            pairing: Pairing::Relativistic,
            real: Real::Data,
            adversarial_weight: 1.0,
            mse_weight: 0.0,
            r1: 1e-4,
            r1_every: 4,
            critic_rate: 2e-3,
            critic_beta1: 0.0,
            critic_beta2: 0.99,
            critic_halved: false,
            student_every: 1,
            guidance: guidance(),
            patience: 300,
        }
    }
}

impl AdversarialObjective {
    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], naming the field.
    pub fn validate(&self) -> Result<()> {
        self.validate_levels()?;
        within("objective.warmup", self.warmup, STEPS_OR_NONE)?;
        let names = [
            "objective.critic_density.mean",
            "objective.critic_density.std",
            "objective.critic_density.scale",
        ];
        self.critic_density.validate(names)?;
        if let Some(blocks) = &self.blocks
            && (blocks.is_empty() || !blocks.is_sorted_by(|a, b| a < b))
        {
            let expected = "at least one index, each above the one before";
            return Err(Error::invalid("objective.blocks", expected, format!("{blocks:?}")));
        }
        within("objective.head_width", self.head_width, GROUPS..=1024)?;
        if self.head_width % GROUPS != 0 {
            return Err(Error::invalid(
                "objective.head_width",
                "a multiple of 8",
                self.head_width,
            ));
        }
        if let Real::Teacher { guidance, steps } = self.real {
            within("objective.real.guidance", guidance, 0.0..=100.0)?;
            within("objective.real.steps", steps, 1..=1000)?;
        }
        within("objective.adversarial_weight", self.adversarial_weight, TERM)?;
        within("objective.mse_weight", self.mse_weight, TERM)?;
        if self.adversarial_weight == 0.0 && self.mse_weight == 0.0 {
            let expected = "a weight above 0, or one of objective.mse_weight";
            return Err(Error::invalid("objective.adversarial_weight", expected, "0 for both"));
        }
        within("objective.r1", self.r1, TERM)?;
        within("objective.r1_every", self.r1_every, STEPS)?;
        within("objective.critic_rate", self.critic_rate, SHARE)?;
        within("objective.critic_beta1", self.critic_beta1, DECAY)?;
        within("objective.critic_beta2", self.critic_beta2, DECAY)?;
        within("objective.student_every", self.student_every, STEPS)?;
        within("objective.guidance", self.guidance, 0.0..=100.0)?;
        within("objective.patience", self.patience, STEPS_OR_NONE).map(drop)
    }

    fn validate_levels(&self) -> Result<()> {
        let count = self.levels.as_ref().map_or(DEFAULT_LEVELS, Vec::len);
        if let Some(levels) = &self.levels {
            within("number of objective.levels", count, 1..=64)?;
            let falling = levels.is_sorted_by(|a, b| a > b);
            if !falling || levels.iter().any(|level| !(0.001..=1.0).contains(level)) {
                let expected = "falling numbers from 0.001 to 1";
                return Err(Error::invalid("objective.levels", expected, format!("{levels:?}")));
            }
        }
        let warmup = ("objective.warmup_shares", &self.warmup_shares);
        let warmup = (self.warmup > 0).then_some(warmup);
        for (name, shares) in [("objective.shares", &self.shares)].into_iter().chain(warmup) {
            let within = shares.iter().all(|share| SHARE.contains(share));
            if shares.len() != count || !within || shares.iter().sum::<f64>() <= 0.0 {
                let expected = format!("{count} numbers from 0 to 1, one for each of the levels, and one above 0");
                return Err(Error::invalid(name, expected, format!("{shares:?}")));
            }
        }
        Ok(())
    }

    /// Returns the fields that have no effect and not their defaults, with the weight that is 0.
    pub(crate) fn without_effect(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let usual = Self::default();
        let critic = [
            ("objective.critic_density", self.critic_density != usual.critic_density),
            ("objective.blocks", self.blocks != usual.blocks),
            ("objective.head_width", self.head_width != usual.head_width),
            ("objective.pairing", self.pairing != usual.pairing),
            ("objective.r1", self.r1 != usual.r1),
            ("objective.r1_every", self.r1_every != usual.r1_every),
            ("objective.critic_rate", self.critic_rate != usual.critic_rate),
            ("objective.critic_beta1", self.critic_beta1 != usual.critic_beta1),
            ("objective.critic_beta2", self.critic_beta2 != usual.critic_beta2),
            ("objective.critic_halved", self.critic_halved != usual.critic_halved),
            ("objective.student_every", self.student_every != usual.student_every),
        ];
        let named = |fields: &[(&'static str, bool)]| -> Vec<&'static str> {
            fields
                .iter()
                .filter(|(_, changed)| *changed)
                .map(|(name, _)| *name)
                .collect()
        };
        let r1 = [("objective.r1_every", self.r1_every != usual.r1_every)];
        let found = match (self.has_critic(), self.r1 == 0.0) {
            (false, _) => ("objective.adversarial_weight", named(&critic)),
            (true, true) => ("objective.r1", named(&r1)),
            (true, false) => return Vec::new(),
        };
        [found].into_iter().filter(|(_, fields)| !fields.is_empty()).collect()
    }

    /// Returns `true` if shares of a warm-up are given that the run does not have.
    pub(crate) fn has_unused_warmup(&self) -> bool {
        self.warmup == 0 && self.warmup_shares != Self::default().warmup_shares
    }

    /// Returns `true` if a critic is trained.
    pub(crate) fn has_critic(&self) -> bool {
        self.adversarial_weight > 0.0
    }

    /// Returns the student's noise levels for a target of this number of tokens.
    pub(crate) fn levels(&self, target_tokens: i64, shift: Shift) -> Result<Vec<f64>> {
        if let Some(levels) = &self.levels {
            return Ok(levels.clone());
        }
        let schedule = Schedule::new(DEFAULT_LEVELS, target_tokens, shift, Conformance::Native)?;
        let sigmas = schedule.sigmas().iter().take(DEFAULT_LEVELS);
        Ok(sigmas.map(|sigma| f64::from(*sigma)).collect())
    }

    /// Returns the highest of the student's noise levels that has a share after the warm-up.
    pub(crate) fn highest(&self, target_tokens: i64, shift: Shift) -> Result<f64> {
        let levels = self.levels(target_tokens, shift)?;
        let highest = levels.into_iter().zip(&self.shares).find(|(_, share)| **share > 0.0);
        let none = || Error::bug("noise levels without a share");
        Ok(highest.ok_or_else(none)?.0)
    }

    /// Draws the student's noise level of each item at optimizer step `step` (from 0).
    pub(super) fn draw(
        &self,
        rng: &mut impl Rng,
        batch: usize,
        step: u64,
        target_tokens: i64,
        shift: Shift,
    ) -> Result<Vec<f64>> {
        let levels = self.levels(target_tokens, shift)?;
        let shares = if step < self.warmup {
            &self.warmup_shares
        } else {
            &self.shares
        };
        let total: f64 = shares.iter().sum();
        let mut draw = || {
            let mut left = total * uniform(rng);
            let found = levels.iter().zip(shares).find(|(_, share)| {
                left -= **share;
                left < 0.0
            });
            found.or_else(|| levels.iter().zip(shares).rfind(|(_, share)| **share > 0.0))
        };
        let none = || Error::bug("noise levels without a share");
        (0..batch).map(|_| Ok(*draw().ok_or_else(none)?.0)).collect()
    }

    /// Draws the critic's noise level of each item, in (0, 1).
    pub(crate) fn draw_critic(&self, rng: &mut impl Rng, batch: usize) -> Vec<f64> {
        let level = |_| self.critic_density.quantile(uniform(rng)).clamp(1e-4, 1.0);
        (0..batch).map(level).collect()
    }

    /// Returns the blocks with a head, in a model of this number of blocks.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a block that the model does not have.
    pub(crate) fn blocks(&self, of: usize) -> Result<Vec<usize>> {
        let Some(blocks) = &self.blocks else {
            return Ok(if of <= EACH {
                (0..of).collect()
            } else {
                (1..=SPREAD).map(|index| index * of / SPREAD - 1).collect()
            });
        };
        match blocks.iter().find(|block| **block >= of) {
            None => Ok(blocks.clone()),
            Some(block) => Err(Error::invalid(
                "objective.blocks",
                format!("blocks of the model, from 0 to {}", of.saturating_sub(1)),
                block,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::random::{Stream, generator};

    #[test]
    fn levels_are_those_of_four_steps_and_are_drawn_by_their_shares() {
        let objective = AdversarialObjective {
            warmup: 1,
            ..AdversarialObjective::default()
        };
        let levels = objective.levels(16, Shift::schnell()).unwrap();
        assert_eq!(levels, [1.0, 0.75, 0.5, 0.25]);
        let drawn = |step| {
            let mut rng = generator(3, Stream::Step, step);
            objective.draw(&mut rng, 4000, step, 16, Shift::schnell()).unwrap()
        };
        let share = |drawn: &[f64], level| drawn.iter().filter(|l| **l == level).count() as f64 / 4000.0;
        let (warm, later) = (drawn(0), drawn(1));
        assert_eq!((share(&warm, 1.0), share(&warm, 0.75)), (0.0, 0.0));
        for (level, expected) in levels.into_iter().zip([0.7, 0.1, 0.1, 0.1]) {
            assert!((share(&later, level) - expected).abs() < 0.03, "{level}");
        }
    }

    #[test]
    fn the_highest_level_is_one_that_is_trained() {
        let mut objective = AdversarialObjective::default();
        let highest = |objective: &AdversarialObjective| objective.highest(16, Shift::schnell()).unwrap();
        assert_eq!(highest(&objective), 1.0);
        objective.shares = vec![0.0, 0.5, 0.0, 0.5];
        assert_eq!(highest(&objective), 0.75);
    }

    #[test]
    fn small_models_have_a_head_after_each_block_and_large_ones_six() {
        let blocks = |of| AdversarialObjective::default().blocks(of).unwrap();
        assert_eq!(blocks(6), [0, 1, 2, 3, 4, 5]);
        assert_eq!(blocks(57), [8, 18, 27, 37, 46, 56]);
        let named = AdversarialObjective {
            blocks: Some(vec![1, 6]),
            ..AdversarialObjective::default()
        };
        assert!(named.validate().is_ok() && named.blocks(7).is_ok());
        assert!(named.blocks(6).unwrap_err().to_string().contains("objective.blocks"));
    }

    #[test]
    fn values_of_no_sense_are_refused_by_their_fields() {
        let refused = |change: &dyn Fn(&mut AdversarialObjective), name: &str| {
            let mut objective = AdversarialObjective::default();
            change(&mut objective);
            let error = objective.validate().unwrap_err().to_string();
            assert!(error.contains(name), "{name}: {error}");
        };
        AdversarialObjective::default().validate().unwrap();
        refused(&|o| o.levels = Some(vec![0.5, 1.0]), "objective.levels");
        refused(&|o| o.levels = Some(vec![1.0]), "objective.shares");
        refused(&|o| o.shares = vec![0.0; 4], "objective.shares");
        refused(&|o| o.warmup_shares[0] = f64::NAN, "objective.warmup_shares");
        let two = |warmup| AdversarialObjective {
            levels: Some(vec![1.0, 0.5]),
            shares: vec![0.5, 0.5],
            warmup,
            ..AdversarialObjective::default()
        };
        assert!(two(0).validate().is_ok() && two(1).validate().is_err());
        refused(&|o| o.blocks = Some(vec![2, 2]), "objective.blocks");
        refused(&|o| o.head_width = 12, "objective.head_width");
        refused(&|o| o.adversarial_weight = 0.0, "objective.adversarial_weight");
        refused(&|o| o.r1_every = 0, "objective.r1_every");
        let density = Density::LogitNormal { mean: 11.0, std: 1.0 };
        refused(&|o| o.critic_density = density, "objective.critic_density.mean");
    }
}
