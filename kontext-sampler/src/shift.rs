//! The shift of the sigmas.

use std::ops::RangeInclusive;

use crate::Conformance;

/// Shift of the sigmas towards noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shift {
    /// By `e^mu`, where mu grows linearly with the number of target tokens.
    Dynamic {
        /// mu at `base_tokens`.
        base_shift: f64,
        /// mu at `max_tokens`.
        max_shift: f64,
        /// Tokens of the smallest training image.
        base_tokens: f64,
        /// Tokens of the largest training image.
        max_tokens: f64,
    },
    /// By a constant factor; 1 leaves the sigmas as they are.
    Fixed(f64),
}

impl Shift {
    /// Range of a fixed shift.
    pub const RANGE: RangeInclusive<f64> = 0.01..=100.0;

    /// Returns the shift of FLUX.1-dev and Kontext: mu from 0.5 at 256 tokens to 1.15 at 4096.
    #[must_use]
    pub const fn dev() -> Self {
        Self::Dynamic {
            base_shift: 0.5,
            max_shift: 1.15,
            base_tokens: 256.0,
            max_tokens: 4096.0,
        }
    }

    /// Returns the shift of FLUX.1-schnell: none.
    #[must_use]
    pub const fn schnell() -> Self {
        Self::Fixed(1.0)
    }

    /// Shifts one sigma in (0, 1] for a target of `target_tokens` tokens, so that training samples the noise
    /// levels of a run.
    #[must_use]
    pub fn shifted(self, sigma: f32, target_tokens: i64) -> f32 {
        let mut sigma = [sigma];
        self.apply(&mut sigma, target_tokens, Conformance::Native);
        sigma[0]
    }

    /// Shifts sigmas for a target of `target_tokens` tokens, in f32 as the references do.
    pub(crate) fn apply(self, sigmas: &mut [f32], target_tokens: i64, conformance: Conformance) {
        match self {
            Self::Dynamic {
                base_shift,
                max_shift,
                base_tokens,
                max_tokens,
            } => {
                let slope = (max_shift - base_shift) / (max_tokens - base_tokens);
                let mu = target_tokens as f64 * slope + (base_shift - slope * base_tokens);
                let factor = mu.exp() as f32;
                for sigma in sigmas {
                    let sum = factor + (1.0 / *sigma - 1.0);
                    *sigma = match conformance {
                        Conformance::Native | Conformance::Diffusers => factor / sum,
                        // PyTorch divides a number by a tensor as the tensor's reciprocal times the number.
                        Conformance::Bfl => 1.0 / sum * factor,
                    };
                }
            }
            Self::Fixed(shift) => {
                let (shift, excess) = (shift as f32, (shift - 1.0) as f32);
                for sigma in sigmas {
                    *sigma = shift * *sigma / (1.0 + excess * *sigma);
                }
            }
        }
    }
}
