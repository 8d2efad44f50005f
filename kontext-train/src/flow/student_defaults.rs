//! The settings with which a few-step student is to be used.

use kontext::ModelDefaults;
use kontext_core::Result;
use kontext_lora::LoraDefaults;
use kontext_sampler::{Conformance, Sampler, Schedule, Shift};

use super::samples::Sampling;
use crate::base::Base;
use crate::objective::AdversarialObjective;

/// Largest difference of a level to that of a schedule with a fixed shift.
const NEAR: f64 = 1e-3;

impl AdversarialObjective {
    /// Returns the settings of the student's LoRA: a step for each level, each of which predicts the image.
    /// Levels of its own give a fixed shift, if there is one whose schedule has them.
    pub(super) fn lora_defaults(&self, base: &Base) -> Result<LoraDefaults> {
        let shift = self.levels.as_deref().map(fixed_shift).transpose()?;
        Ok(LoraDefaults {
            steps: Some(self.shares.len()),
            sampler: Some(Sampler::Consistency),
            guidance: base.config.guidance_embed.then_some(self.guidance),
            shift: shift.flatten(),
            ..LoraDefaults::default()
        })
    }

    /// Returns the defaults of the student as a model: those of the base model otherwise.
    pub(super) fn model_defaults(&self, base: &Base) -> Result<ModelDefaults> {
        let own = self.lora_defaults(base)?;
        let of_base = base.defaults();
        Ok(ModelDefaults {
            steps: own.steps,
            sampler: own.sampler,
            guidance: own.guidance.or(of_base.guidance),
            shift: own.shift.or(of_base.shift),
            ..of_base.clone()
        })
    }

    /// Returns the sampling of the student's images: at its levels.
    pub(super) fn sampling(&self, base: &Base) -> Sampling {
        let levels = self.levels.as_ref();
        Sampling {
            shift: base.shift,
            sampler: Sampler::Consistency,
            steps: self.shares.len(),
            levels: levels.map(|levels| levels.iter().map(|level| *level as f32).collect()),
        }
    }
}

/// Returns the fixed shift whose schedule has these levels, if there is one.
fn fixed_shift(levels: &[f64]) -> Result<Option<f64>> {
    let unshifted = |index: usize| 1.0 - index as f64 / levels.len() as f64;
    // A shift s moves u to s u / (1 + (s - 1) u); it leaves 1 where it is.
    let Some(level) = levels.get(1) else { return Ok(None) };
    let shift = level * (1.0 - unshifted(1)) / (unshifted(1) * (1.0 - level));
    // Levels are written with a few digits; the shift that they mean has fewer.
    let shift = (1e3 * shift).round() / 1e3;
    if !Shift::RANGE.contains(&shift) {
        return Ok(None);
    }
    let schedule = Schedule::new(levels.len(), 1, Shift::Fixed(shift), Conformance::Native)?;
    let is_near = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() < NEAR;
    Ok(schedule.sigmas().iter().zip(levels).all(is_near).then_some(shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_a_shifted_schedule_give_its_shift() {
        let shift = fixed_shift(&[1.0, 0.9, 0.75, 0.5]).unwrap().unwrap();
        assert!((shift - 3.0).abs() < 1e-9, "{shift}");
        assert_eq!(fixed_shift(&[1.0, 0.6667]).unwrap(), Some(2.0));
        for levels in [&[1.0, 0.9, 0.7, 0.5][..], &[1.0], &[0.9, 0.5], &[1.0, 0.001]] {
            assert_eq!(fixed_shift(levels).unwrap(), None, "{levels:?}");
        }
    }
}
