//! The learning-rate schedule of a run.

use kontext_core::Result;
use kontext_core::range::within;
use serde::{Deserialize, Serialize};

use crate::bounds::{SHARE, STEPS_OR_NONE};

/// Linear warm-up, then cosine decay to a share of the peak.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LrSchedule {
    /// Peak learning rate, from 1e-12 to 10. Default 1e-4.
    pub peak: f64,
    /// Steps of linear warm-up from zero, at most 10^9. Default 100.
    pub warmup: u64,
    /// Final share of the peak, from 0 to 1. Default 0.05; 1 keeps the rate constant after the warm-up.
    pub floor: f64,
}

impl Default for LrSchedule {
    fn default() -> Self {
        Self {
            peak: 1e-4,
            warmup: 100,
            floor: 0.05,
        }
    }
}

impl LrSchedule {
    /// Checks the values.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`], naming the field.
    pub fn validate(&self) -> Result<()> {
        within("rate.peak", self.peak, 1e-12..=10.0)?;
        within("rate.warmup", self.warmup, STEPS_OR_NONE)?;
        within("rate.floor", self.floor, SHARE).map(drop)
    }

    /// Returns the learning rate of step `step` (from 0) of `total`.
    #[must_use]
    pub fn at(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let span = total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / span).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.peak * (self.floor + (1.0 - self.floor) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_peaks_and_ends_at_its_floor() {
        let rate = LrSchedule {
            peak: 1.0,
            warmup: 10,
            floor: 0.1,
        };
        assert!((rate.at(0, 110) - 0.1).abs() < 1e-12);
        assert!((rate.at(10, 110) - 1.0).abs() < 1e-12);
        assert!((rate.at(60, 110) - 0.55).abs() < 1e-12);
        assert!((rate.at(110, 110) - 0.1).abs() < 1e-12);
    }
}
