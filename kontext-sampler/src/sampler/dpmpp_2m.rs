//! DPM-Solver++(2M), in the form for flows.
//!
//! With the signal 1 - sigma, a step of the first order is Euler's: `x' = r x + (1 - r) x0`, `r = next / sigma`. The
//! second order takes `x0 + h / (2 h') (x0 - x0')` instead of `x0`, where x0' is of the step before, and h and h' are
//! the changes of the log of the signal-to-noise ratio over both steps.
//!
//! Source: huggingface/diffusers 0.38 `schedulers/scheduling_dpmsolver_multistep.py`, `flow_prediction`,
//! `dpmsolver++`, `midpoint`.

use kontext_core::{Device, During, Kind, Result, Tensor};

use super::{Model, Rule, Span};
use crate::Conformance;

/// The rule of [`Sampler::Dpmpp2m`](super::Sampler::Dpmpp2m).
#[derive(Default)]
pub(super) struct Dpmpp2m {
    /// The image predicted in the step before, and its noise level.
    before: Option<(Tensor, f32)>,
}

impl Rule for Dpmpp2m {
    fn step(&mut self, x: &Tensor, span: &Span, model: &mut Model<'_>) -> Result<Tensor> {
        let v = model.velocity(x, span.step)?;
        let image = predicted_image(x, &v, span).during(span.stage())?;
        let before = self.before.take().filter(|_| !span.is_last());
        let next = match span.conformance {
            Conformance::Native | Conformance::Bfl => native(x, &image, before.as_ref(), span),
            Conformance::Diffusers => diffusers(x, &image, before.as_ref(), span),
        };
        let next = next.and_then(|x| span.kept(&x)).during(span.stage())?;
        self.before = Some((image, span.sigma));
        Ok(next)
    }
}

/// Computes `x - sigma * v`, in f32; diffusers rounds it to the model's dtype.
fn predicted_image(x: &Tensor, v: &Tensor, span: &Span) -> Result<Tensor> {
    let image = x.f_to_kind(Kind::Float)?.f_sub(&span.times(v, span.sigma)?)?;
    Ok(match span.conformance {
        Conformance::Diffusers => image.f_to_kind(v.kind())?,
        Conformance::Native | Conformance::Bfl => image,
    })
}

/// Computes a step in f32, with factors in f64.
fn native(x: &Tensor, image: &Tensor, before: Option<&(Tensor, f32)>, span: &Span) -> Result<Tensor> {
    if span.is_last() {
        return Ok(image.shallow_clone());
    }
    // The log of the signal-to-noise ratio; -inf at pure noise, above which a shift may round.
    let ratio = |sigma: f32| {
        let sigma = f64::from(sigma).min(1.0);
        ((1.0 - sigma) / sigma).ln()
    };
    let rest = f64::from(span.next) / f64::from(span.sigma);
    let x = x.f_to_kind(Kind::Float)?.f_mul_scalar(rest)?;
    let ahead = match before {
        None => image.shallow_clone(),
        Some((before, level)) => {
            let (h, h_before) = (ratio(span.next) - ratio(span.sigma), ratio(span.sigma) - ratio(*level));
            image.f_add(&image.f_sub(before)?.f_mul_scalar(0.5 * h / h_before)?)?
        }
    };
    Ok(x.f_add(&ahead.f_mul_scalar(1.0 - rest)?)?)
}

/// Computes a step with the operations of diffusers, whose factors are f32 tensors of one element.
fn diffusers(x: &Tensor, image: &Tensor, before: Option<&(Tensor, f32)>, span: &Span) -> Result<Tensor> {
    let signal = 1.0 - span.next;
    let h = log_ratio(span.next)? - log_ratio(span.sigma)?;
    let factor = signal * (exp(-h)? - 1.0);
    let kept = x
        .f_to_kind(Kind::Float)?
        .f_mul_scalar(f64::from(span.next / span.sigma))?;
    let next = kept.f_sub(&span.times(image, factor)?)?;
    let Some((before, level)) = before else {
        return Ok(next);
    };
    let r0 = (log_ratio(span.sigma)? - log_ratio(*level)?) / h;
    let change = span.times(&image.f_sub(before)?, 1.0 / r0)?.f_to_kind(image.kind())?;
    Ok(next.f_sub(&span.times(&change, 0.5 * factor)?)?)
}

/// Computes `log(1 - sigma) - log(sigma)` as libtorch does.
fn log_ratio(sigma: f32) -> Result<f32> {
    let log = |value: f32| {
        scalar(value)?
            .f_log()
            .map_err(Into::into)
            .and_then(|log| value_of(&log))
    };
    Ok(log((1.0 - sigma).max(0.0))? - log(sigma)?)
}

fn exp(value: f32) -> Result<f32> {
    value_of(&scalar(value)?.f_exp()?)
}

fn scalar(value: f32) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&[value])?.f_to_device(Device::Cpu)?)
}

fn value_of(scalar: &Tensor) -> Result<f32> {
    Ok(scalar.f_double_value(&[0])? as f32)
}
