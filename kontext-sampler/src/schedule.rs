//! Noise schedules: the sigmas of a run, and the times embedded for the model.

use half::bf16;
use kontext_core::{Error, Kind, Result};

use crate::{Conformance, Shift};

/// Scale of the model's time and guidance inputs: it was trained on times in [0, 1000], where sigmas are in
/// [0, 1].
///
/// ```
/// use kontext_core::Kind;
/// use kontext_sampler::{Conformance, Schedule, Shift, TIME_FACTOR};
///
/// let schedule = Schedule::new(4, 256, Shift::schnell(), Conformance::Native)?;
/// assert_eq!(schedule.embedded_times(Kind::Float)[1], 0.75 * TIME_FACTOR);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub const TIME_FACTOR: f32 = 1000.0;
/// Upper limit on the number of steps; more is taken for a typing error.
pub(crate) const MOST_STEPS: usize = 1000;

/// Returns the first thing wrong with custom sigmas.
fn wrong_sigmas(sigmas: &[f32]) -> Option<String> {
    let count = sigmas.len();
    if !(1..=MOST_STEPS).contains(&count) {
        return Some(format!("{count} values"));
    }
    let within = |sigma: f32| sigma > 0.0 && sigma <= 1.0;
    if let Some(place) = sigmas.iter().position(|&sigma| !within(sigma)) {
        return Some(format!("{:?} at place {place} of {count}", sigmas[place]));
    }
    let place = 1 + sigmas.windows(2).position(|pair| pair[0] <= pair[1])?;
    let (before, sigma) = (sigmas[place - 1], sigmas[place]);
    Some(format!("{sigma} after {before}, at place {place} of {count}"))
}

/// Noise levels of a run: from noise (1) down to the image (0).
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    sigmas: Vec<f32>,
    conformance: Conformance,
}

impl Schedule {
    /// Creates a schedule of `steps` steps for a target of `target_tokens` tokens (references do not count).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `steps` is 0 or above 1000, or if the shift moves sigmas out of [0, 1].
    pub fn new(steps: usize, target_tokens: i64, shift: Shift, conformance: Conformance) -> Result<Self> {
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::invalid("steps", format!("1 to {MOST_STEPS}"), steps));
        }
        let mut sigmas = match conformance {
            Conformance::Bfl => torch_linspace(steps),
            Conformance::Native | Conformance::Diffusers => numpy_linspace(steps),
        };
        shift.apply(&mut sigmas, target_tokens, conformance);
        check_shifted(&sigmas, shift, target_tokens)?;
        sigmas.push(0.0);
        Ok(Self { sigmas, conformance })
    }

    /// Creates a schedule from custom sigmas, from high to low; the final 0 is added.
    ///
    /// They are used unchanged, except that [`Conformance::Diffusers`] shifts them first, as diffusers does.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless there are 1 to 1000 values, strictly decreasing within (0, 1].
    pub fn from_sigmas(sigmas: &[f32], target_tokens: i64, shift: Shift, conformance: Conformance) -> Result<Self> {
        if let Some(got) = wrong_sigmas(sigmas) {
            let expected = format!("1 to {MOST_STEPS} strictly falling values in (0, 1]");
            return Err(Error::invalid("sigmas", expected, got));
        }
        let mut sigmas = sigmas.to_vec();
        if conformance == Conformance::Diffusers {
            shift.apply(&mut sigmas, target_tokens, conformance);
            check_shifted(&sigmas, shift, target_tokens)?;
        }
        sigmas.push(0.0);
        Ok(Self { sigmas, conformance })
    }

    /// Keeps the last part of the schedule, to start from an image instead of noise.
    ///
    /// `strength` 1 keeps all steps; 0.5 the last half. Of N steps `floor(N - N * strength)`, computed in f64, are left
    /// out, and at least one remains.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `strength` is not in (0, 1].
    ///
    /// Source: huggingface/diffusers 0.38 `pipeline_flux_img2img.py`, `get_timesteps`.
    pub fn strength(mut self, strength: f64) -> Result<Self> {
        if !(strength > 0.0 && strength <= 1.0) {
            return Err(Error::invalid("strength", "above 0 and at most 1", strength));
        }
        let steps = self.steps();
        let kept = steps as f64 * strength;
        let left_out = ((steps as f64 - kept) as usize).min(steps - 1);
        self.sigmas.drain(..left_out);
        Ok(self)
    }

    /// Returns the number of steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// Returns the sigmas, one more than steps; the last is 0.
    #[must_use]
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Returns the time of each step as the model embeds it, on a scale where 1000 is noise, with the
    /// roundings of the run's dtype in the order of the conventions.
    #[must_use]
    pub fn embedded_times(&self, kind: Kind) -> Vec<f32> {
        let round = rounding(kind);
        let embed = |sigma: &f32| match self.conformance {
            Conformance::Native => sigma * TIME_FACTOR,
            Conformance::Diffusers => round(round(round(sigma * TIME_FACTOR) / TIME_FACTOR) * TIME_FACTOR),
            Conformance::Bfl => round(round(*sigma) * TIME_FACTOR),
        };
        self.sigmas[..self.steps()].iter().map(embed).collect()
    }

    /// Returns the guidance value on the same scale.
    #[must_use]
    pub fn embedded_guidance(&self, guidance: f64, kind: Kind) -> f32 {
        let round = rounding(kind);
        match self.conformance {
            Conformance::Native => guidance as f32 * TIME_FACTOR,
            Conformance::Diffusers | Conformance::Bfl => round(round(guidance as f32) * TIME_FACTOR),
        }
    }

    /// Returns the conventions of the schedule.
    #[must_use]
    pub fn conformance(&self) -> Conformance {
        self.conformance
    }
}

/// Checks shifted sigmas: a negative factor makes them leave [0, 1], and one that overflows NaN.
fn check_shifted(sigmas: &[f32], shift: Shift, target_tokens: i64) -> Result<()> {
    /// Above 1 by the rounding of a division.
    const MOST: f32 = 1.0 + 1e-5;
    match sigmas.iter().find(|sigma| !(0.0..=MOST).contains(*sigma)) {
        None => Ok(()),
        Some(sigma) => {
            let got = format!("{shift:?}, which gives {sigma} for {target_tokens} tokens");
            Err(Error::invalid("shift", "one that keeps sigmas from 0 to 1", got))
        }
    }
}

/// Returns a function that rounds an f32 to a dtype and back.
pub(crate) fn rounding(kind: Kind) -> fn(f32) -> f32 {
    match kind {
        Kind::BFloat16 => |x| bf16::from_f32(x).to_f32(),
        Kind::Half => |x| half::f16::from_f32(x).to_f32(),
        _ => |x| x,
    }
}

/// Computes `np.linspace(1, 1 / n, n)`, converted to f32.
fn numpy_linspace(steps: usize) -> Vec<f32> {
    let last = 1.0 / steps as f64;
    let step = (last - 1.0) / (steps as f64 - 1.0).max(1.0);
    let value = |i: usize| {
        if i + 1 == steps && steps > 1 {
            last
        } else {
            i as f64 * step + 1.0
        }
    };
    (0..steps).map(|i| value(i) as f32).collect()
}

/// Computes `torch.linspace(1, 0, n + 1)` in f32 without its last element: from the nearer end, with fused
/// multiply-add as on every CPU for which PyTorch has vector code.
///
/// Source: pytorch/pytorch v2.11.0 `aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp`, `linspace_kernel`.
fn torch_linspace(steps: usize) -> Vec<f32> {
    let step = -1.0_f32 / steps as f32;
    let value = |i: usize| {
        if i < steps.div_ceil(2) {
            step.mul_add(i as f32, 1.0)
        } else {
            -step * (steps - i) as f32
        }
    };
    (0..steps).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_that_gives_no_sigmas_is_refused() {
        let steep = Shift::Dynamic {
            base_shift: -10.0,
            max_shift: 10.0,
            base_tokens: 1.0,
            max_tokens: 2.0,
        };
        for shift in [Shift::Fixed(-5.0), Shift::Fixed(f64::NAN), steep] {
            let error = Schedule::new(4, 4096, shift, Conformance::Native).unwrap_err();
            assert!(
                error.to_string().contains("expected one that keeps sigmas from 0 to 1"),
                "{error}"
            );
        }
        for conformance in [Conformance::Native, Conformance::Diffusers, Conformance::Bfl] {
            let longest = Schedule::new(1000, 262_144, Shift::dev(), conformance).unwrap();
            assert_eq!(longest.steps(), 1000);
        }
    }
}
