//! The interface of the step rules.

use kontext_core::{Error, Kind, Result, Stage, Tensor};

use crate::schedule::rounding;
use crate::{Conformance, Inpainting};

/// A step rule, with its memory of earlier steps.
pub(crate) trait Rule {
    /// Returns the latents after a step, in the dtype of `x`.
    fn step(&mut self, x: &Tensor, span: &Span, model: &mut Model<'_>) -> Result<Tensor>;
}

/// A step: its index from 0, the noise levels at its ends, the dtype of the model, and the conventions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) step: usize,
    pub(crate) sigma: f32,
    pub(crate) next: f32,
    pub(crate) kind: Kind,
    pub(crate) conformance: Conformance,
}

impl Span {
    /// Returns `true` for a step to the image.
    pub(crate) fn is_last(&self) -> bool {
        self.next == 0.0
    }

    /// Returns the stage that errors name.
    pub(crate) fn stage(&self) -> Stage {
        Stage::DenoiseStep { step: self.step + 1 }
    }

    /// Returns `factor * v` in f32. diffusers multiplies in the dtype of `v`, to which libtorch rounds the factor as the
    /// first operand.
    pub(crate) fn times(&self, v: &Tensor, factor: f32) -> Result<Tensor> {
        Ok(match self.conformance {
            Conformance::Diffusers => {
                let product = v.f_mul_scalar(f64::from(rounding(v.kind())(factor)))?;
                product.f_to_kind(Kind::Float)?
            }
            Conformance::Native | Conformance::Bfl => v.f_to_kind(Kind::Float)?.f_mul_scalar(f64::from(factor))?,
        })
    }

    /// Returns the latents in the dtype in which they are kept between steps.
    pub(crate) fn kept(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_to_kind(self.conformance.latents_kind(self.kind))?)
    }
}

/// The functions that a step rule may call.
pub(crate) struct Model<'a> {
    pub(crate) kind: Kind,
    pub(crate) conformance: Conformance,
    /// The noise level of each time.
    pub(crate) sigmas: &'a [f32],
    pub(crate) inpainting: Option<&'a Inpainting>,
    pub(crate) velocity: &'a mut dyn FnMut(&Tensor, usize) -> Result<Tensor>,
    pub(crate) noise: &'a mut dyn FnMut(usize) -> Result<Tensor>,
    /// The last evaluation, for the observer of a step.
    pub(crate) last: Option<Evaluation>,
}

/// An evaluation of the model: the latents, their noise level, and the velocity.
#[derive(Debug)]
pub(crate) struct Evaluation {
    x: Tensor,
    sigma: f32,
    velocity: Tensor,
}

impl Evaluation {
    /// Computes the predicted image `x - sigma * velocity` in f32.
    pub(crate) fn image(&self) -> Result<Tensor> {
        let change = self
            .velocity
            .f_to_kind(Kind::Float)?
            .f_mul_scalar(f64::from(self.sigma))?;
        Ok(self.x.f_to_kind(Kind::Float)?.f_sub(&change)?)
    }
}

impl Model<'_> {
    /// Returns the velocity at latents whose noise level is that of step `time`.
    pub(crate) fn velocity(&mut self, x: &Tensor, time: usize) -> Result<Tensor> {
        let velocity = (self.velocity)(&x.f_to_kind(self.kind)?, time)?;
        let sigma = self.sigmas.get(time).copied();
        let sigma = sigma.ok_or_else(|| Error::bug("a velocity at a time that is not in the schedule"))?;
        let velocity = match self.inpainting {
            None => velocity,
            Some(inpainting) => inpainting.velocity(x, &velocity, sigma, self.conformance)?,
        };
        self.last = Some(Evaluation {
            x: x.shallow_clone(),
            sigma,
            velocity: velocity.shallow_clone(),
        });
        Ok(velocity)
    }

    /// Returns the noise of a step.
    pub(crate) fn noise(&mut self, step: usize) -> Result<Tensor> {
        (self.noise)(step)
    }
}
