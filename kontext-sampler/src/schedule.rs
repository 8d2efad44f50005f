//! Noise schedules: the sigmas of a run, and the times embedded for the model.

use std::path::Path;

use half::bf16;
use kontext_core::{Error, Kind, Result, read_json};
use serde::Deserialize;

use crate::Conformance;

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
const MOST_STEPS: usize = 1000;

/// Limit for numbers in a configuration: beyond it they are mistakes, and their exponentials overflow.
const LARGEST: f64 = 1e6;

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

/// Fields of diffusers' `scheduler_config.json` that determine the sigmas.
#[derive(Deserialize)]
#[serde(default)]
struct DiffusersConfig {
    shift: f64,
    use_dynamic_shifting: bool,
    base_shift: f64,
    max_shift: f64,
    base_image_seq_len: f64,
    max_image_seq_len: f64,
    time_shift_type: String,
    shift_terminal: Option<f64>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    invert_sigmas: bool,
    stochastic_sampling: bool,
}

impl Default for DiffusersConfig {
    fn default() -> Self {
        Self {
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256.0,
            max_image_seq_len: 4096.0,
            time_shift_type: "exponential".to_owned(),
            shift_terminal: None,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            invert_sigmas: false,
            stochastic_sampling: false,
        }
    }
}

impl Shift {
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

    /// Reads diffusers' `scheduler_config.json`.
    ///
    /// # Errors
    /// A checkpoint error if the file is not such a configuration, or asks for a schedule that FLUX.1 does
    /// not use.
    pub fn from_json(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json: DiffusersConfig = read_json(path)?;
        let flags = [
            json.use_karras_sigmas,
            json.use_exponential_sigmas,
            json.use_beta_sigmas,
        ];
        if flags.contains(&Some(true))
            || json.shift_terminal.is_some()
            || json.invert_sigmas
            || json.stochastic_sampling
        {
            return Err(Error::config(
                path,
                "it asks for karras, exponential, beta, terminal, inverted or stochastic sigmas, which FLUX.1 does not use",
            ));
        }
        if json.use_dynamic_shifting && json.time_shift_type != "exponential" {
            return Err(Error::config(
                path,
                format!(
                    "time_shift_type is `{}`, only `exponential` is known",
                    json.time_shift_type
                ),
            ));
        }
        let shifts = [json.shift, json.base_shift, json.max_shift];
        let tokens = [json.base_image_seq_len, json.max_image_seq_len];
        if shifts
            .iter()
            .chain(&tokens)
            .any(|v| !(v.is_finite() && v.abs() < LARGEST))
            || tokens[0] >= tokens[1]
        {
            let reason =
                format!("shifts {shifts:?} and lengths {tokens:?} must be below {LARGEST}, and lengths must rise");
            return Err(Error::config(path, reason));
        }
        Ok(if json.use_dynamic_shifting {
            Self::Dynamic {
                base_shift: json.base_shift,
                max_shift: json.max_shift,
                base_tokens: json.base_image_seq_len,
                max_tokens: json.max_image_seq_len,
            }
        } else {
            Self::Fixed(json.shift)
        })
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
    fn apply(self, sigmas: &mut [f32], target_tokens: i64, conformance: Conformance) {
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
    /// [`Error::InvalidArgument`] if `steps` is 0 or above 1000.
    pub fn new(steps: usize, target_tokens: i64, shift: Shift, conformance: Conformance) -> Result<Self> {
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::invalid("steps", format!("1 to {MOST_STEPS}"), steps));
        }
        let mut sigmas = match conformance {
            Conformance::Bfl => torch_linspace(steps),
            Conformance::Native | Conformance::Diffusers => numpy_linspace(steps),
        };
        shift.apply(&mut sigmas, target_tokens, conformance);
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
        }
        sigmas.push(0.0);
        Ok(Self { sigmas, conformance })
    }

    /// Keeps the last part of the schedule, to start from an image instead of noise.
    ///
    /// `strength` 1 keeps all steps; 0.5 the last half. Of N steps the last `floor(N * strength)` remain, at
    /// least one.
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
        let keep = ((steps as f64 * strength) as usize).clamp(1, steps);
        self.sigmas.drain(..steps - keep);
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
