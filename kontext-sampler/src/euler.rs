//! Euler integration of the rectified flow from noise to an image.

use std::ops::ControlFlow;

use kontext_core::{Device, During, Error, Kind, Result, Stage, Tensor, check};

use crate::schedule::rounding;
use crate::{Conformance, Schedule};

/// The state passed to an observer after a step.
#[derive(Debug)]
pub struct Step<'a> {
    /// Number of finished steps, from 1.
    pub done: usize,
    /// Total number of steps.
    pub total: usize,
    /// Noise level after the step, in [0, 1].
    pub sigma: f32,
    /// Latents at that level, as tokens [B, L, 4 C].
    pub latents: &'a Tensor,
}

/// Integrates `dx / dsigma = velocity(x, step)` over a schedule.
///
/// `velocity` receives the latents [B, L, 4 C] in dtype `kind` and the step's index. `observe` is called
/// after each step and may cancel the run.
///
/// Non-finite values are detected without a device synchronisation: each step writes a flag, which on a GPU
/// is read one step later.
///
/// # Errors
/// Any error of `velocity`, [`Error::Cancelled`] if `observe` breaks, [`Error::NotFinite`] with the step.
pub fn integrate(
    latents: &Tensor,
    schedule: &Schedule,
    kind: Kind,
    mut velocity: impl FnMut(&Tensor, usize) -> Result<Tensor>,
    mut observe: impl FnMut(&Step<'_>) -> ControlFlow<()>,
) -> Result<Tensor> {
    let total = schedule.steps();
    let mut latents = latents.f_to_kind(schedule.conformance().latents_kind(kind))?;
    let mut flag: Option<Tensor> = None;
    for (step, pair) in schedule.sigmas().windows(2).enumerate() {
        let v = velocity(&latents.f_to_kind(kind)?, step)?;
        latents = euler_step(&latents, &v, pair[1] - pair[0], schedule.conformance())
            .during(Stage::DenoiseStep { step: step + 1 })?;
        // On the CPU the flag is ready at once; on a GPU the previous step's is read while this one runs.
        let fresh = check::finite_flag(&latents)?;
        if latents.device() == Device::Cpu {
            read_flag(step + 1, &fresh)?;
        } else if let Some(flag) = flag.replace(fresh) {
            read_flag(step, &flag)?;
        }
        if observe(&Step {
            done: step + 1,
            total,
            sigma: pair[1],
            latents: &latents,
        })
        .is_break()
        {
            return Err(Error::Cancelled { done: step + 1, total });
        }
    }
    if let Some(flag) = flag {
        read_flag(total, &flag)?;
    }
    Ok(latents)
}

fn read_flag(step: usize, flag: &Tensor) -> Result<()> {
    check::read_finite_flag(Stage::DenoiseStep { step }, flag)
}

/// Computes `x + delta * v` with the roundings of the conventions.
fn euler_step(x: &Tensor, v: &Tensor, delta: f32, conformance: Conformance) -> Result<Tensor> {
    match conformance {
        // f32 throughout.
        Conformance::Native => Ok(x.f_add(&v.f_to_kind(Kind::Float)?.f_mul_scalar(f64::from(delta))?)?),
        // The step size is rounded to the model's dtype, and so is the product; the sum is computed in f32
        // and rounded.
        Conformance::Diffusers => {
            let product = v.f_mul_scalar(f64::from(rounding(v.kind())(delta)))?;
            Ok(x.f_to_kind(Kind::Float)?
                .f_add(&product.f_to_kind(Kind::Float)?)?
                .f_to_kind(v.kind())?)
        }
        // Everything in the model's dtype.
        Conformance::Bfl => Ok(x.f_add(&v.f_mul_scalar(f64::from(delta))?)?),
    }
}

/// Mixes an image's latents with noise at the first level of a schedule:
/// `(1 - sigma) * latents + sigma * noise`.
///
/// # Errors
/// [`Error::Torch`] if their shapes differ.
pub fn add_noise(latents: &Tensor, noise: &Tensor, schedule: &Schedule) -> Result<Tensor> {
    let sigma = schedule.sigmas().first().copied().map_or(1.0, f64::from);
    Ok(latents.f_mul_scalar(1.0 - sigma)?.f_add(&noise.f_mul_scalar(sigma)?)?)
}
