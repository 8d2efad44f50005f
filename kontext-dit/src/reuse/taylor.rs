//! Steps at an interval, and an extrapolation in between.

use super::StepWork;
use super::mode::always_computed;
use super::parameter::Parameter;

/// Interval of computed steps, between which the blocks' change is extrapolated along the line through the last two.
///
/// Of `TaylorSeer` (arXiv 2503.06923) this is order 1, applied to the change of all blocks at once instead of to each of
/// their modules: it keeps two tensors instead of hundreds. Steps are computed before step `first`, and at every
/// `interval`th from `first + 1` on: 0, 1, 2, 4, 9, 14, 19, 24 and the last at the defaults and 28 steps.
///
/// Source: huggingface/diffusers 0.38 `hooks/taylorseer_cache.py`, whose defaults these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // Plain data, to be written out whole.
pub struct Taylor {
    /// Steps from one computed one to the next, from 1 (all are computed) to 1000. Default: 5.
    pub interval: usize,
    /// Number of steps, from 1 to 1000, that are computed at the beginning. Default: 3.
    pub first: usize,
}

impl Default for Taylor {
    fn default() -> Self {
        Self { interval: 5, first: 3 }
    }
}

impl Taylor {
    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::steps("interval", &mut self.interval, 1),
            Parameter::steps("first", &mut self.first, 1),
        ]
    }

    /// Returns the work of each step.
    pub(super) fn schedule(&self, steps: usize) -> Vec<StepWork> {
        let on_grid = |step: usize| step > self.first && (step - self.first - 1).is_multiple_of(self.interval.max(1));
        let computed = |step| step < self.first || on_grid(step) || self.interval <= 1 || always_computed(step, steps);
        let work = |step| {
            if computed(step) {
                StepWork::Computed
            } else {
                StepWork::Skipped
            }
        };
        (0..steps).map(work).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn computed(interval: usize, first: usize, steps: usize) -> Vec<usize> {
        let work = Taylor { interval, first }.schedule(steps);
        (0..steps).filter(|step| work[*step] == StepWork::Computed).collect()
    }

    #[test]
    fn steps_are_computed_where_diffusers_computes_them_and_at_the_end() {
        assert_eq!(computed(5, 3, 28), [0, 1, 2, 4, 9, 14, 19, 24, 27]);
        assert_eq!(computed(2, 6, 12), [0, 1, 2, 3, 4, 5, 7, 9, 11]);
        assert_eq!(computed(1, 3, 6), [0, 1, 2, 3, 4, 5]);
        assert_eq!(computed(1000, 1, 5), [0, 2, 4]);
        assert_eq!(computed(5, 3, 1), [0]);
    }
}
