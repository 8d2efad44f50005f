//! Euler's method.

use kontext_core::{During, Kind, Result, Tensor};

use super::{Model, Rule, Span};
use crate::Conformance;
use crate::schedule::rounding;

/// The rule of [`Sampler::Euler`](super::Sampler::Euler).
pub(super) struct Euler;

impl Rule for Euler {
    fn step(&mut self, x: &Tensor, span: &Span, model: &mut Model<'_>) -> Result<Tensor> {
        let v = model.velocity(x, span.step)?;
        advance(x, &v, span).during(span.stage())
    }
}

/// Computes `x + (next - sigma) * v` with the roundings of the conventions.
pub(super) fn advance(x: &Tensor, v: &Tensor, span: &Span) -> Result<Tensor> {
    let delta = span.next - span.sigma;
    match span.conformance {
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
