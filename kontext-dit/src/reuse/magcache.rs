//! MagCache: a constant schedule from measured ratios.

use super::mode::always_computed;
use super::parameter::Parameter;
use super::published::{FLUX_RATIOS, KONTEXT_COMPUTED, KONTEXT_RATIOS};
use crate::StepWork;

/// Schedule of computed steps from the ratios by which the norm of the blocks' change was measured to vary.
///
/// A step is skipped while the estimated error of the reused change, the sum of `|1 - product of the ratios|` since the
/// last computed step, is at most [`MagCache::threshold`]. Ratios are FLUX.1 Kontext's for edits and FLUX.1-dev's for
/// runs without references, of 28 steps; for another number those of the nearest steps. A run that starts from an image
/// (strength below 1) has the ratios of a whole one.
///
/// At the defaults an edit of 28 steps computes 14: half of the time. With `threshold` 0.03 it is 17, with 0.1 and
/// `most_skips` 5 it is 12.
///
/// Source: Zehong-Ma/MagCache@df81cb1 `MagCache4FLUX_Kontext/magcache_flux_kontext.py`, whose defaults these are.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(clippy::exhaustive_structs)] // Plain data, to be written out whole.
pub struct MagCache {
    /// Upper bound of the estimated relative error, from 0 to 10. Default: 0.05.
    pub threshold: f64,
    /// Upper bound of consecutive skipped steps, from 0 to 1000. Default: 4.
    pub most_skips: usize,
    /// Share of the run's steps, from 0 to 1, that are computed at its beginning. Default: 0.2.
    pub start: f64,
}

impl Default for MagCache {
    fn default() -> Self {
        Self {
            threshold: 0.05,
            most_skips: 4,
            start: 0.2,
        }
    }
}

impl MagCache {
    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::threshold(&mut self.threshold),
            Parameter::steps("most_skips", &mut self.most_skips, 0),
            Parameter::share("start", &mut self.start),
        ]
    }

    /// Returns the work of each step.
    pub(super) fn schedule(&self, steps: usize, references: bool) -> Vec<StepWork> {
        let (ratios, computed) = if references {
            (&KONTEXT_RATIOS, Some(KONTEXT_COMPUTED))
        } else {
            (&FLUX_RATIOS, None)
        };
        let first = (self.start * steps as f64 + 0.5) as usize;
        let (mut ratio, mut skipped, mut error) = (1.0, 0, 0.0);
        let work = |step| {
            let nearest = nearest(step, steps, ratios.len());
            if step >= first {
                ratio *= ratios.get(nearest).copied().unwrap_or(1.0);
                skipped += 1;
                error += f64::abs(1.0 - ratio);
                let within = error <= self.threshold && skipped <= self.most_skips;
                if within && Some(nearest) != computed && !always_computed(step, steps) {
                    return StepWork::Skipped;
                }
            }
            (ratio, skipped, error) = (1.0, 0, 0.0);
            StepWork::Computed
        };
        (0..steps).map(work).collect()
    }
}

/// Returns the one of `measured` steps at the place of `step` among `steps`; halves go to the even one, as in NumPy.
fn nearest(step: usize, steps: usize, measured: usize) -> usize {
    if steps <= 1 {
        return measured - 1;
    }
    (step as f64 * ((measured - 1) as f64 / (steps - 1) as f64)).round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn computed(cache: MagCache, steps: usize, references: bool) -> Vec<usize> {
        let work = cache.schedule(steps, references);
        (0..steps).filter(|step| work[*step] == StepWork::Computed).collect()
    }

    #[test]
    fn an_edit_of_28_steps_computes_the_published_14() {
        let expected = [0, 1, 2, 3, 4, 5, 7, 10, 11, 16, 21, 24, 26, 27];
        assert_eq!(computed(MagCache::default(), 28, true), expected);
    }

    #[test]
    fn parameters_change_the_number_of_computed_steps_as_published() {
        let with = |threshold, most_skips| MagCache {
            threshold,
            most_skips,
            ..MagCache::default()
        };
        let counts = [(0.05, 2), (0.03, 4), (0.1, 5)].map(|(t, k)| computed(with(t, k), 28, true).len());
        assert_eq!(counts, [16, 17, 12]);
        // No error allowed, or no step: all but those of a ratio of exactly 1, or all.
        assert_eq!(computed(with(10.0, 0), 28, true).len(), 28);
        assert_eq!(computed(with(0.0, 4), 28, true).len(), 28 - 4);
    }

    /// Values of the published program for other numbers of steps.
    #[test]
    fn other_numbers_of_steps_take_the_nearest_ratios() {
        let places = |steps| (0..steps).map(|step| nearest(step, steps, 28)).collect::<Vec<_>>();
        assert_eq!(places(1), [27]);
        assert_eq!(places(2), [0, 27]);
        // 13.5 is half-way, and 14 even.
        assert_eq!(places(3), [0, 14, 27]);
        assert_eq!(places(4), [0, 9, 18, 27]);
        assert_eq!(places(28), (0..28).collect::<Vec<_>>());
    }

    #[test]
    fn first_and_last_steps_are_computed_whatever_the_parameters_are() {
        let all = MagCache {
            threshold: 10.0,
            most_skips: 1000,
            start: 0.0,
        };
        for (steps, expected) in [(1, vec![0]), (2, vec![0, 1]), (5, vec![0, 4])] {
            assert_eq!(computed(all, steps, false), expected);
        }
        assert_eq!(computed(all, 28, true), [0, 11, 27]);
        assert_eq!(computed(all, 14, false), [0, 13]);
    }
}
