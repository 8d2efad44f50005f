//! Euler integration of the rectified flow from noise to a picture.

use std::ops::ControlFlow;

use kontext_core::{Device, During, Error, Kind, Result, Tensor, check};

use crate::schedule::rounding;
use crate::{Conformance, Schedule};

/// What an observer sees after a step.
#[derive(Debug)]
pub struct Step<'a> {
    /// Steps that are finished, from 1.
    pub done: usize,
    /// Steps of the run.
    pub total: usize,
    /// The noise level that was reached, in [0, 1].
    pub sigma: f32,
    /// The latents at that level, as tokens [B, L, 4 C].
    pub latents: &'a Tensor,
}

/// Integrates `dx / dsigma = velocity(x, step)` over a schedule.
///
/// `velocity` receives the latents [B, L, 4 C] in kind `kind` and the step's index. `observe` is
/// called after each step and may break off.
///
/// Values that are not finite are found without waiting for the device: each step leaves a flag,
/// read one step later on a GPU.
///
/// # Errors
/// What `velocity` returns, [`Error::Cancelled`], [`Error::NotFinite`] with the step.
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
        latents =
            euler_step(&latents, &v, pair[1] - pair[0], schedule.conformance()).during("taking a sampling step")?;
        // On the CPU the flag is there at once; on a GPU the previous step's is read while this one runs.
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
    check::read_finite_flag(&format!("denoising step {step}"), flag)
}

/// `x + delta * v` with the roundings of the mode.
fn euler_step(x: &Tensor, v: &Tensor, delta: f32, conformance: Conformance) -> Result<Tensor> {
    match conformance {
        // f32 throughout.
        Conformance::Kontext => Ok(x.f_add(&v.f_to_kind(Kind::Float)?.f_mul_scalar(f64::from(delta))?)?),
        // A step of one element takes the model's kind, and so does the product; the sum is made in
        // f32 and rounded.
        Conformance::Diffusers => {
            let product = v.f_mul_scalar(f64::from(rounding(v.kind())(delta)))?;
            Ok(x.f_to_kind(Kind::Float)?
                .f_add(&product.f_to_kind(Kind::Float)?)?
                .f_to_kind(v.kind())?)
        }
        // Everything in the model's kind.
        Conformance::Bfl => Ok(x.f_add(&v.f_mul_scalar(f64::from(delta))?)?),
    }
}

/// Mixes a picture's latents with noise at the first level of a schedule:
/// `(1 - sigma) * latents + sigma * noise`.
///
/// # Errors
/// [`Error::Torch`] where their shapes differ.
pub fn add_noise(latents: &Tensor, noise: &Tensor, schedule: &Schedule) -> Result<Tensor> {
    let sigma = schedule.sigmas().first().copied().map_or(1.0, f64::from);
    Ok(latents.f_mul_scalar(1.0 - sigma)?.f_add(&noise.f_mul_scalar(sigma)?)?)
}
