//! Losses of critic and student on the logits of real images and of the student's.

use kontext_core::{Kind, Result, Tensor};

use crate::objective::Pairing;

/// Returns the critic's loss, a scalar, of logits [B, N].
pub(crate) fn critic(pairing: Pairing, real: &Tensor, fake: &Tensor) -> Result<Tensor> {
    Ok(match pairing {
        Pairing::Relativistic => real.f_sub(fake)?.f_neg()?.f_softplus()?.f_mean(Kind::Float)?,
        Pairing::Hinge => {
            let real = real.f_neg()?.f_add_scalar(1.0)?.f_relu()?.f_mean(Kind::Float)?;
            real.f_add(&fake.f_add_scalar(1.0)?.f_relu()?.f_mean(Kind::Float)?)?
        }
    })
}

/// Returns the adversarial term of the student's loss, a scalar, of logits [B, N].
pub(crate) fn student(pairing: Pairing, real: &Tensor, fake: &Tensor) -> Result<Tensor> {
    Ok(match pairing {
        Pairing::Relativistic => fake.f_sub(real)?.f_neg()?.f_softplus()?.f_mean(Kind::Float)?,
        Pairing::Hinge => fake.f_neg()?.f_mean(Kind::Float)?,
    })
}

/// Returns R1: the squared gradient of the real logits with respect to each of the features, summed over an
/// item and averaged over the batch. A gradient passes through it to the heads' values.
pub(crate) fn r1(real: &Tensor, features: &[Tensor]) -> Result<Tensor> {
    let gradients = Tensor::f_run_backward(&[real.f_sum(Kind::Float)?], features, true, true)?;
    let squares = gradients.iter().map(|gradient| -> Result<Tensor> {
        let by_item = gradient
            .f_square()?
            .f_sum_dim_intlist([1_i64, 2].as_slice(), false, Kind::Float)?;
        Ok(by_item.f_mean(Kind::Float)?)
    });
    let squares = squares.collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_stack(&squares, 0)?.f_sum(Kind::Float)?)
}

/// Returns the share of items whose real image has the higher mean logit.
pub(crate) fn accuracy(real: &Tensor, fake: &Tensor) -> Result<f64> {
    let mean = |logits: &Tensor| logits.f_mean_dim([1_i64].as_slice(), false, Kind::Float);
    let right = mean(real)?.f_gt_tensor(&mean(fake)?)?;
    Ok(right.f_to_kind(Kind::Float)?.f_mean(Kind::Float)?.f_double_value(&[])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).reshape([2, -1])
    }

    #[test]
    fn losses_are_those_of_their_formulas() {
        let (real, fake) = (of(&[2.0, 0.0]), of(&[0.0, 0.0]));
        let softplus = |x: f64| x.exp().ln_1p();
        let value = |loss: Tensor| loss.double_value(&[]);
        let expected = (softplus(-2.0) + softplus(0.0)) / 2.0;
        assert!((value(critic(Pairing::Relativistic, &real, &fake).unwrap()) - expected).abs() < 1e-6);
        let expected = (softplus(2.0) + softplus(0.0)) / 2.0;
        assert!((value(student(Pairing::Relativistic, &real, &fake).unwrap()) - expected).abs() < 1e-6);
        // max(0, 1 - 2), max(0, 1 - 0); max(0, 1 + 0) twice.
        assert_eq!(value(critic(Pairing::Hinge, &real, &fake).unwrap()), 0.5 + 1.0);
        assert_eq!(value(student(Pairing::Hinge, &real, &real).unwrap()), -1.0);
    }

    #[test]
    fn an_item_counts_as_right_by_its_mean_logit() {
        let (real, fake) = (of(&[1.0, -1.0, 3.0, 0.0]), of(&[1.0, 0.0, 1.0, 1.0]));
        assert_eq!(accuracy(&real, &fake).unwrap(), 0.5);
    }
}
