//! TeaCache: a decision before the blocks of each step.

use kontext_core::{Result, Tensor, range};

use super::mode::always_computed;
use super::parameter::{MOST_STEPS, Parameter};
use super::published::{FLUX_POLYNOMIAL, KONTEXT_POLYNOMIAL};
use super::residual::distance;

/// Decision by the change of the first block's modulated input from step to step: a polynomial estimates from it the
/// change of the model's output, and steps are skipped while the sum of the estimates is below [`TeaCache::threshold`].
///
/// The input is that of target and references, as where the polynomials were fitted: FLUX.1 Kontext's for edits, FLUX.1-dev's
/// for runs without references. A step that is computed for another reason begins the sum at zero. Each step with a
/// decision waits for the device once.
///
/// Source: ali-vilab/TeaCache@7c10efc; welltop-cn/ComfyUI-TeaCache@91dff8e for Kontext, whose defaults these are (about
/// twice as fast). On FLUX.1-dev thresholds of 0.25, 0.4, 0.6 and 0.8 are published as 1.5, 1.8, 2.0 and 2.25 times.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(clippy::exhaustive_structs)] // Plain data, to be written out whole.
pub struct TeaCache {
    /// Upper bound of the summed estimates, from 0 (all steps are computed) to 10. Default: 0.22.
    pub threshold: f64,
    /// Share of the run's steps, from 0 to 1, before which all are computed. Default: 0.2.
    pub start: f64,
    /// Share of the run's steps, from `start` to 1, after which all are computed. Default: 0.9.
    pub end: f64,
    /// Upper bound of consecutive skipped steps, from 0 to 1000. Default: 1000, no bound.
    pub most_skips: usize,
}

impl Default for TeaCache {
    fn default() -> Self {
        Self {
            threshold: 0.22,
            start: 0.2,
            end: 0.9,
            most_skips: MOST_STEPS,
        }
    }
}

impl TeaCache {
    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::threshold(&mut self.threshold),
            Parameter::share("start", &mut self.start),
            Parameter::share("end", &mut self.end),
            Parameter::steps("most_skips", &mut self.most_skips, 0),
        ]
    }

    /// Returns `true` if a step may be skipped.
    pub(super) fn may_skip(&self, step: usize, steps: usize) -> bool {
        let share = step as f64 / steps as f64;
        self.threshold > 0.0 && (self.start..=self.end).contains(&share) && !always_computed(step, steps)
    }

    /// Checks that the shares are in order.
    pub(super) fn check(&self) -> Result<()> {
        range::within("end", self.end, self.start..=1.0).map(drop)
    }
}

/// State of the decision.
#[derive(Debug)]
pub(super) struct TeaCacheRule {
    config: TeaCache,
    polynomial: [f64; 5],
    /// The first block's modulated input at the step before: of the target, and of references.
    input: Option<Tensor>,
    sum: f64,
    skipped: usize,
}

impl TeaCacheRule {
    pub(super) fn new(config: TeaCache, references: bool) -> Self {
        Self {
            config,
            polynomial: if references {
                KONTEXT_POLYNOMIAL
            } else {
                FLUX_POLYNOMIAL
            },
            input: None,
            sum: 0.0,
            skipped: 0,
        }
    }

    /// Returns `true` if the step is skipped whose first block has this modulated input.
    pub(super) fn skips(&mut self, step: usize, steps: usize, input: Tensor) -> Result<bool> {
        let before = self.input.replace(input);
        let skip = match (before, &self.input) {
            (Some(before), Some(input))
                if self.config.may_skip(step, steps) && self.skipped < self.config.most_skips =>
            {
                self.sum += estimate(&self.polynomial, distance(input, &before)?);
                self.sum < self.config.threshold
            }
            _ => false,
        };
        if skip {
            self.skipped += 1;
        } else {
            (self.sum, self.skipped) = (0.0, 0);
        }
        Ok(skip)
    }
}

/// Returns the magnitude of a polynomial's value, the highest power's coefficient first.
fn estimate(polynomial: &[f64], x: f64) -> f64 {
    polynomial.iter().fold(0.0, |sum, factor| sum * x + factor).abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `numpy.polyval`.
    #[test]
    fn estimates_are_those_of_the_published_polynomials() {
        for (polynomial, x, expected) in [
            (KONTEXT_POLYNOMIAL, 0.1, 0.116_960_969_4),
            (KONTEXT_POLYNOMIAL, 0.2, 0.267_675_492_5),
            (FLUX_POLYNOMIAL, 0.1, 0.206_847_376_1),
        ] {
            let got = estimate(&polynomial, x);
            assert!((got - expected).abs() < 1e-6, "{x}: {got}");
        }
    }

    #[test]
    fn steps_may_be_skipped_between_start_and_end() {
        let cache = TeaCache::default();
        let may: Vec<usize> = (0..28).filter(|step| cache.may_skip(*step, 28)).collect();
        assert_eq!(may, (6..=25).collect::<Vec<_>>());
    }
}
