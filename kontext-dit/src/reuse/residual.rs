//! The change that blocks make to the target's tokens.

use kontext_core::{Error, Kind, Result, Tensor};

/// Change [N, L, D] that blocks made to the target's tokens at the last computed step.
#[derive(Debug)]
pub(super) struct Residual {
    value: Tensor,
    /// Change of `value` a step.
    slope: Option<Tensor>,
    step: usize,
}

impl Residual {
    /// Keeps the change at a step. With `extrapolate`, the slope from the change before is kept, too.
    pub(super) fn new(value: Tensor, step: usize, before: Option<&Self>, extrapolate: bool) -> Result<Self> {
        let slope = match before.filter(|_| extrapolate) {
            Some(before) if before.value.size() == value.size() && step > before.step => {
                let steps = (step - before.step) as f64;
                Some(value.f_sub(&before.value)?.f_div_scalar(steps)?)
            }
            _ => None,
        };
        Ok(Self { value, slope, step })
    }

    /// Adds the change to the tokens of a later step.
    pub(super) fn add_to(&self, tokens: &Tensor, step: usize) -> Result<Tensor> {
        if tokens.size() != self.value.size() {
            return Err(Error::invalid(
                "target of a cached run",
                format!("the batch of the steps before, {}", self.value.size()[0]),
                tokens.size()[0],
            ));
        }
        let sum = tokens.f_add(&self.value)?;
        match &self.slope {
            Some(slope) => {
                let steps = step.saturating_sub(self.step) as f64;
                Ok(sum.f_add(&slope.f_mul_scalar(steps)?)?)
            }
            None => Ok(sum),
        }
    }
}

/// Returns the mean magnitude of the difference, relative to that of `b`. Waits for the device.
pub(super) fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    let difference = a.f_sub(b)?.f_abs()?.f_mean(Kind::Float)?;
    Ok(difference
        .f_div(&b.f_abs()?.f_mean(Kind::Float)?)?
        .f_double_value(&[])?)
}
