//! The intervals of a run: when it saves, validates and samples.

use kontext_core::Result;
use kontext_core::range::within;
use serde::{Deserialize, Serialize};

use crate::bounds::STEPS_OR_NONE;

/// Steps between saves, validations and samples, at most 10^9; 0 for never. The state is also saved at the
/// end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Intervals {
    /// The state, from which the run resumes. Default 500.
    pub save: u64,
    /// Loss on held-out items. Default 250.
    pub validate: u64,
    /// A grid of images. Default 1000.
    pub sample: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            save: 500,
            validate: 250,
            sample: 1000,
        }
    }
}

impl Intervals {
    /// Checks the values.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`], naming the field.
    pub fn validate(&self) -> Result<()> {
        within("every.save", self.save, STEPS_OR_NONE)?;
        within("every.validate", self.validate, STEPS_OR_NONE)?;
        within("every.sample", self.sample, STEPS_OR_NONE).map(drop)
    }

    /// Returns the first step after `step` at which something is due, `total` at most.
    pub(crate) fn next(&self, step: u64, total: u64) -> u64 {
        let next = |interval: u64| {
            step.checked_div(interval)
                .map_or(u64::MAX, |passed| (passed + 1) * interval)
        };
        [self.save, self.validate, self.sample]
            .into_iter()
            .map(next)
            .fold(total, u64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_interval_ends_a_segment() {
        let intervals = Intervals {
            save: 10,
            validate: 4,
            sample: 0,
        };
        let next: Vec<u64> = [0, 4, 8, 10, 12].map(|step| intervals.next(step, 13)).to_vec();
        assert_eq!(next, [4, 8, 10, 12, 13]);
    }
}
