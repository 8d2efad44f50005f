//! The steps that are full, and those that compute fewer tokens.

use kontext_core::{Error, Result, range};

use super::{EditedTokens, velocity};
use crate::StepWork;

/// Number of steps that the numbers of a [`ReferenceReuse`] are of.
const STEPS: usize = 28;

/// Schedule by which steps of an edit reuse the keys and values of the references, and of unedited tokens.
///
/// The first steps and the last ones are full, and so is one in between; the others compute text and target,
/// or text and edited tokens. Published for FLUX.1 Kontext without training: 2.41 times the speed at a PSNR
/// of 30 to 32 dB to the exact run, with edited tokens and an estimated velocity. Without edited tokens the
/// defaults have 1.47 times fewer FLOPs.
///
/// All numbers are of 28 steps; a run of another number has the nearest ones ([`ReferenceReuse::schedule`]).
///
/// Its text is `references` or `region`, and after a colon what differs from the defaults:
/// `references:refresh=10+19`, `references:every=7`, `region:threshold=0.9,error=0,warmup=4,last=1`. It is
/// read and written so by serde, too.
///
/// Source: RegionE, Peyton-Chen/RegionE@974da98 `script/FluxKontext.sh`.
///
/// # Example
/// ```
/// use kontext_dit::{ReferenceReuse, StepWork};
/// let reuse = ReferenceReuse::default();
/// let work = reuse.schedule(&[1.0, 0.75, 0.5, 0.25, 0.0], 4096);
/// use StepWork::{Computed, WithoutReferences};
/// assert_eq!(work, [Computed, WithoutReferences, Computed, Computed]);
/// assert_eq!("references:every=7".parse::<ReferenceReuse>()?.to_string(), "references:every=7");
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub struct ReferenceReuse {
    /// Number of full steps at the beginning, from 1 to 28. Default: 6.
    pub warmup: usize,
    /// Full steps after them. Default: step 15, counted from 0.
    pub refresh: Refresh,
    /// Number of full steps at the end, from 0 to 28. Default: 2.
    pub last: usize,
    /// Choice of edited tokens, the only ones of the target that steps between the full ones compute.
    /// Default: `None`, they compute all.
    pub edited: Option<EditedTokens>,
}

/// Full steps between the first and the last ones.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refresh {
    /// At these steps of 28, counted from 0.
    At(Vec<usize>),
    /// At each such number of steps after the first ones.
    Every(usize),
}

impl Default for ReferenceReuse {
    fn default() -> Self {
        Self {
            warmup: 6,
            refresh: Refresh::At(vec![15]),
            last: 2,
            edited: None,
        }
    }
}

impl ReferenceReuse {
    /// Returns RegionE's mode: only edited tokens are computed, with an estimated velocity.
    #[must_use]
    pub fn region() -> Self {
        Self {
            edited: Some(EditedTokens::default()),
            ..Self::default()
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the number's name and range.
    pub fn validate(&self) -> Result<()> {
        range::within("warmup", self.warmup, 1..=STEPS)?;
        range::within("last", self.last, 0..=STEPS)?;
        match &self.refresh {
            Refresh::At(steps) => {
                if let Some(step) = steps.iter().find(|step| **step >= STEPS) {
                    let expected = format!("steps below {STEPS}, counted from 0");
                    return Err(Error::invalid("refresh", expected, step));
                }
            }
            Refresh::Every(steps) => {
                range::within("every", *steps, 1..=STEPS)?;
            }
        }
        self.edited.as_ref().map_or(Ok(()), EditedTokens::validate)
    }

    /// Returns the work of each step of a run with these noise levels, one more than its steps; `edited` is
    /// the number of edited tokens.
    ///
    /// For another number of steps than 28, N, step s of 28 becomes step `s * N / 28`, to the nearest; at
    /// least the first step is full, and one at the end unless [`ReferenceReuse::last`] is 0. The velocity is
    /// estimated in runs of 28 steps from pure noise only, whose ratios are published.
    #[must_use]
    pub fn schedule(&self, sigmas: &[f32], edited: u32) -> Vec<StepWork> {
        let steps = sigmas.len().saturating_sub(1);
        let nearest = |step: usize| (step.min(STEPS) * steps * 2 + STEPS) / (2 * STEPS);
        let warmup = nearest(self.warmup).max(1);
        let last = nearest(self.last).max(self.last.min(1));
        let refreshed = |step: usize| match &self.refresh {
            Refresh::At(refresh) => refresh.iter().any(|refresh| nearest(*refresh) == step),
            Refresh::Every(every) => (step + 1 - warmup).is_multiple_of(nearest(*every).max(1)),
        };
        let mut estimated = 1.0;
        let kind = |step| {
            if step < warmup || step + last >= steps || refreshed(step) {
                estimated = 1.0;
                return StepWork::Computed;
            }
            let Some(choice) = &self.edited else {
                return StepWork::WithoutReferences;
            };
            // The first step after the first ones is computed.
            let ratio = velocity::ratio(sigmas, step).filter(|ratio| *ratio < 1.0 && step > warmup);
            if let Some(ratio) = ratio {
                estimated *= ratio;
                if 1.0 - estimated <= choice.error {
                    return StepWork::Estimated;
                }
            }
            estimated = 1.0;
            StepWork::Edited(edited)
        };
        (0..steps).map(kind).collect()
    }

    /// Returns the ratio of the velocity of an [estimated](StepWork::Estimated) step to that of the step
    /// before.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a step of a run in which no velocity is estimated.
    pub fn ratio(sigmas: &[f32], step: usize) -> Result<f64> {
        velocity::ratio(sigmas, step).ok_or_else(|| {
            let expected = format!("a step after the first of {STEPS} from pure noise, for an estimated velocity");
            let got = format!("step {step} of {}", sigmas.len().saturating_sub(1));
            Error::invalid("step", expected, got)
        })
    }
}

/// Returns the work of a step that is not skipped, and `true` if it keeps keys and values.
///
/// `work` is the schedule of the reuse; `kept` is `true` if all steps that were to keep some have. A full
/// step keeps them if the next one is to read them; so does a full one instead of one that finds none.
pub(crate) fn step_work(work: &[StepWork], step: usize, kept: bool) -> (StepWork, bool) {
    let at = |step: usize| work.get(step).copied().unwrap_or(StepWork::Computed);
    match at(step) {
        StepWork::Computed => (StepWork::Computed, at(step + 1) != StepWork::Computed),
        reduced if kept => (reduced, false),
        _ => (StepWork::Computed, true),
    }
}

/// Returns the work of each step of a run by the schedules of a step cache and of a reuse: a step that the
/// cache skips is skipped, and if it was to keep keys and values, the next computed one is full.
#[must_use]
pub(crate) fn combined(cache: &[StepWork], reuse: &[StepWork]) -> Vec<StepWork> {
    let mut kept = false;
    let work = |step: usize| {
        if cache.get(step) == Some(&StepWork::Skipped) {
            kept &= !step_work(reuse, step, true).1;
            return StepWork::Skipped;
        }
        let (work, keeps) = step_work(reuse, step, kept);
        kept |= keeps;
        work
    };
    (0..cache.len()).map(work).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise levels of `steps` steps at 1024x1024: shifted by e^1.15.
    fn sigmas(steps: usize) -> Vec<f32> {
        let shifted = |step| {
            let t = 1.0 - step as f64 / steps as f64;
            let factor = 1.15_f64.exp();
            (factor * t / (1.0 + (factor - 1.0) * t)) as f32
        };
        (0..=steps).map(shifted).collect()
    }

    fn letters(reuse: &ReferenceReuse, steps: usize) -> String {
        reuse.validate().unwrap();
        let letter = |kind| match kind {
            StepWork::Computed => 'F',
            StepWork::WithoutReferences => 'r',
            StepWork::Edited(7) => 'e',
            StepWork::Estimated => '-',
            other => panic!("{other:?}"),
        };
        reuse.schedule(&sigmas(steps), 7).into_iter().map(letter).collect()
    }

    #[test]
    fn the_published_schedule_of_28_steps() {
        assert_eq!(letters(&ReferenceReuse::default(), 28), "FFFFFFrrrrrrrrrFrrrrrrrrrrFF");
    }

    #[test]
    fn other_numbers_of_steps_have_the_nearest_full_ones() {
        for (steps, expected) in [
            (1, "F"),
            (2, "FF"),
            (4, "FrFF"),
            (8, "FFrrFrrF"),
            (14, "FFFrrrrrFrrrrF"),
            // 15 of 28 is 26.8 of 50.
            (50, "FFFFFFFFFFFrrrrrrrrrrrrrrrrFrrrrrrrrrrrrrrrrrrFFFF"),
        ] {
            assert_eq!(letters(&ReferenceReuse::default(), steps), expected, "{steps}");
        }
    }

    #[test]
    fn other_numbers_of_full_steps_are_taken() {
        let reuse = |text: &str| letters(&text.parse().unwrap(), 28);
        assert_eq!(reuse("references:every=7"), "FFFFFFrrrrrrFrrrrrrFrrrrrrFF");
        assert_eq!(
            reuse("references:refresh=10+19,warmup=3,last=0"),
            "FFFrrrrrrrFrrrrrrrrFrrrrrrrr"
        );
        assert_eq!(reuse("references:warmup=28"), "F".repeat(28));
    }

    #[test]
    fn numbers_out_of_range_are_those_at_its_end() {
        let reuse = ReferenceReuse {
            warmup: usize::MAX,
            refresh: Refresh::Every(usize::MAX),
            last: usize::MAX,
            edited: None,
        };
        assert_eq!(reuse.schedule(&sigmas(4), 7), [StepWork::Computed; 4]);
        let late = ReferenceReuse {
            refresh: Refresh::At(vec![usize::MAX]),
            ..ReferenceReuse::default()
        };
        assert_eq!(late.schedule(&sigmas(4), 7)[1], StepWork::WithoutReferences);
    }

    /// The published program computes 15 of 28 steps at 1024x1024.
    #[test]
    fn the_velocity_of_an_edit_of_28_steps_is_estimated_as_published() {
        let letters = letters(&ReferenceReuse::region(), 28);
        assert_eq!(letters.len() - letters.matches('-').count(), 15, "{letters}");
        assert_eq!(
            (&letters[..7], &letters[15..16], &letters[26..]),
            ("FFFFFFe", "F", "FF")
        );
        let none = self::letters(&"region:error=0".parse().unwrap(), 28);
        assert_eq!(none, "FFFFFFeeeeeeeeeFeeeeeeeeeeFF");
        assert!(!self::letters(&ReferenceReuse::region(), 27).contains('-'));
    }

    #[test]
    fn ratios_are_of_gamma_and_noise_levels() {
        let sigmas = sigmas(28);
        // Gamma of the seventh pair of steps, 1.0160.
        let expected = 1.0160 * (1.0 + f64::from(sigmas[7]) - f64::from(sigmas[6]));
        assert_eq!(ReferenceReuse::ratio(&sigmas, 7).unwrap(), expected);
        // The second half of 56 steps, as of an edit with strength 0.5, has 28.
        let half = &self::sigmas(56)[28..];
        assert_eq!(half.len(), sigmas.len());
        for (sigmas, step) in [(&sigmas[..], 0), (&sigmas[..], 28), (&sigmas[1..], 3), (half, 7)] {
            let error = ReferenceReuse::ratio(sigmas, step).unwrap_err().to_string();
            assert!(error.contains("expected a step after the first of 28"), "{error}");
        }
    }
}
