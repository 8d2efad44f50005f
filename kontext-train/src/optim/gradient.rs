//! The four stages of a gradient between the backward passes and the optimizer: collect, norm, check, clip.
//!
//! They are separate functions so that, with parameters or batches spread over devices, an all-reduce can
//! follow `collect` and a global norm can replace `norm`.

use kontext_core::{Error, Result, Stage, Tensor};

use super::Params;

/// Takes the gradient `[N]` that backward passes have accumulated, and resets it.
pub(crate) fn collect(params: &Params) -> Result<Tensor> {
    let gradient = params.gradient()?;
    params.zero_grad();
    Ok(gradient)
}

/// Returns the L2 norm over all values.
pub(crate) fn norm(gradient: &Tensor) -> Result<f64> {
    Ok(gradient.f_norm()?.f_double_value(&[])?)
}

/// Checks that the loss and the norm are finite; `stage` and `hint` are the error's.
///
/// # Errors
/// [`Error::NotFinite`] if one of them is not.
pub(crate) fn check(loss: f64, norm: f64, stage: Stage, hint: &str) -> Result<()> {
    if loss.is_finite() && norm.is_finite() {
        return Ok(());
    }
    Err(Error::NotFinite {
        stage,
        hint: hint.to_owned(),
    })
}

/// Scales the gradient to the norm `max_norm` if its `norm` is greater.
pub(crate) fn clip(gradient: Tensor, norm: f64, max_norm: f64) -> Result<Tensor> {
    Ok(if norm > max_norm {
        gradient.f_mul_scalar(max_norm / norm)?
    } else {
        gradient
    })
}

#[cfg(test)]
mod tests {
    use kontext_core::ModelPart;

    use super::*;

    #[test]
    fn a_long_gradient_is_scaled_and_a_short_one_is_not() {
        let gradient = || Tensor::from_slice(&[3.0_f32, 4.0]);
        let length = norm(&gradient()).unwrap();
        assert_eq!(length, 5.0);
        let values = |max| Vec::<f32>::try_from(clip(gradient(), length, max).unwrap()).unwrap();
        assert_eq!((values(2.5), values(5.0)), (vec![1.5, 2.0], vec![3.0, 4.0]));
    }

    #[test]
    fn a_loss_or_norm_that_is_not_finite_names_the_stage() {
        let stage = Stage::Train {
            part: ModelPart::Transformer,
            step: 3,
        };
        assert!(check(1.0, 1.0, stage, "").is_ok());
        for (loss, norm) in [(f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            let error = check(loss, norm, stage, "take a lower rate.peak").unwrap_err();
            assert!(error.to_string().contains("training step 3"), "{error}");
        }
    }
}
