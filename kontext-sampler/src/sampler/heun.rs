//! Heun's method.
//!
//! Source: huggingface/diffusers 0.38 `schedulers/scheduling_flow_match_heun_discrete.py`, `step` without churn.

use kontext_core::{During, Kind, Result, Tensor};

use super::euler::advance;
use super::{Model, Rule, Span};
use crate::Conformance;

/// The rule of [`Sampler::Heun`](super::Sampler::Heun).
pub(super) struct Heun;

impl Rule for Heun {
    fn step(&mut self, x: &Tensor, span: &Span, model: &mut Model<'_>) -> Result<Tensor> {
        let v = model.velocity(x, span.step)?;
        if span.is_last() && span.conformance != Conformance::Diffusers {
            return advance(x, &v, span).during(span.stage());
        }
        let first = slope(x, &v, span.sigma, span).during(span.stage())?;
        let ahead = moved(x, &first, span).during(span.stage())?;
        if span.is_last() {
            return Ok(ahead);
        }
        let v = model.velocity(&ahead, span.step + 1)?;
        let second = slope(&ahead, &v, span.next, span).during(span.stage())?;
        mean(&first, &second)
            .and_then(|mean| moved(x, &mean, span))
            .during(span.stage())
    }
}

/// Returns the derivative `dx / dsigma` in f32: the velocity. diffusers takes it from the predicted image.
fn slope(x: &Tensor, v: &Tensor, sigma: f32, span: &Span) -> Result<Tensor> {
    if span.conformance != Conformance::Diffusers {
        return Ok(v.f_to_kind(Kind::Float)?);
    }
    let x = x.f_to_kind(Kind::Float)?;
    // The factor is the second operand in diffusers, where libtorch does not round it to the dtype of the first.
    let product = v.f_mul_scalar(f64::from(sigma))?.f_to_kind(Kind::Float)?;
    let image = x.f_sub(&product)?;
    Ok(x.f_sub(&image)?.f_div_scalar(f64::from(sigma))?)
}

fn mean(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.f_add(b)?.f_mul_scalar(0.5)?)
}

/// Computes `x + (next - sigma) * slope` in f32, and rounds it to the dtype of the latents.
fn moved(x: &Tensor, slope: &Tensor, span: &Span) -> Result<Tensor> {
    let delta = f64::from(span.next - span.sigma);
    span.kept(&x.f_to_kind(Kind::Float)?.f_add(&slope.f_mul_scalar(delta)?)?)
}
