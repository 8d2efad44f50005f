//! The re-noising step of consistency models.
//!
//! Source: huggingface/diffusers 0.38 `schedulers/scheduling_flow_match_euler_discrete.py`, `step` with
//! `stochastic_sampling`.

use kontext_core::{During, Kind, Result, Tensor};

use super::{Model, Rule, Span};

/// The rule of [`Sampler::Consistency`](super::Sampler::Consistency).
pub(super) struct Consistency;

impl Rule for Consistency {
    fn step(&mut self, x: &Tensor, span: &Span, model: &mut Model<'_>) -> Result<Tensor> {
        let v = model.velocity(x, span.step)?;
        let noise = if span.is_last() {
            None
        } else {
            Some(model.noise(span.step)?)
        };
        renoised(x, &v, noise.as_ref(), span).during(span.stage())
    }
}

/// Computes `(1 - next) * x0 + next * noise` of the predicted image `x0`.
fn renoised(x: &Tensor, v: &Tensor, noise: Option<&Tensor>, span: &Span) -> Result<Tensor> {
    let image = predicted_image(x, v, span)?;
    let Some(noise) = noise else {
        return span.kept(&image);
    };
    let noise = noise.f_to_kind(Kind::Float)?.f_mul_scalar(f64::from(span.next))?;
    span.kept(&image.f_mul_scalar(f64::from(1.0 - span.next))?.f_add(&noise)?)
}

/// Computes `x - sigma * v` in f32.
fn predicted_image(x: &Tensor, v: &Tensor, span: &Span) -> Result<Tensor> {
    Ok(x.f_to_kind(Kind::Float)?.f_sub(&span.times(v, span.sigma)?)?)
}
