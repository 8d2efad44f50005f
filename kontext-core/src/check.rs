//! Checks at the door of a part: shapes that callers pass.

use tch::Tensor;

use crate::{Error, Result};

/// Checks a tensor's rank and the sizes that are given (`None` accepts any size).
///
/// `expected` is the shape as the documentation writes it and appears in the error.
///
/// # Errors
/// [`Error::Shape`] where the rank or one of the given sizes differs.
pub fn shape(tensor: &'static str, value: &Tensor, expected: &'static str, sizes: &[Option<i64>]) -> Result<()> {
    let got = value.size();
    let fits = got.len() == sizes.len() && got.iter().zip(sizes).all(|(g, s)| s.is_none_or(|s| s == *g));
    if fits {
        Ok(())
    } else {
        Err(Error::Shape { tensor, expected, got })
    }
}

/// The sizes of a tensor of rank `N`.
///
/// # Errors
/// [`Error::Shape`] where the rank differs.
pub fn dims<const N: usize>(tensor: &'static str, value: &Tensor, expected: &'static str) -> Result<[i64; N]> {
    let got = value.size();
    <[i64; N]>::try_from(got.as_slice()).map_err(|_| Error::Shape { tensor, expected, got })
}

/// Fails where a tensor holds a NaN or an infinity. This waits for the device.
///
/// # Errors
/// [`Error::NotFinite`] with the stage's name.
pub fn finite(stage: &str, value: &Tensor) -> Result<()> {
    finite_flag(value).and_then(|flag| read_finite_flag(stage, &flag))
}

/// A one-element tensor on the value's device: whether every element is finite. This does not wait.
///
/// The sum of absolute values is finite only if every element is: one read of the memory and no
/// mask, and it runs in f64 where the sum of many large f32 values could overflow.
///
/// # Errors
/// [`Error::Torch`] where libtorch fails.
pub fn finite_flag(value: &Tensor) -> Result<Tensor> {
    Ok(value.f_abs()?.f_sum(tch::Kind::Double)?.f_isfinite()?)
}

/// Reads a flag of [`finite_flag`]; this waits for the device.
///
/// # Errors
/// [`Error::NotFinite`] with the stage's name.
pub fn read_finite_flag(stage: &str, flag: &Tensor) -> Result<()> {
    if flag.f_int64_value(&[])? != 0 {
        return Ok(());
    }
    let hint = "NaN or infinity: damaged weights, or a dtype too narrow for them; try f32".to_owned();
    Err(Error::NotFinite {
        stage: stage.to_owned(),
        hint,
    })
}

/// The distance of two tensors, `|a - b| / |b|` (L2 norms in f64): how far a result is from its reference.
///
/// # Errors
/// [`Error::Torch`] where their shapes do not agree.
pub fn relative_l2(value: &Tensor, reference: &Tensor) -> Result<f64> {
    let (value, reference) = (
        value.f_to_kind(tch::Kind::Double)?,
        reference.f_to_kind(tch::Kind::Double)?,
    );
    let distance = value
        .f_sub(&reference)?
        .f_square()?
        .f_sum(tch::Kind::Double)?
        .f_sqrt()?;
    let norm = reference.f_square()?.f_sum(tch::Kind::Double)?.f_sqrt()?;
    Ok(distance.f_double_value(&[])? / norm.f_double_value(&[])?.max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_nan_is_found() {
        let mut values = vec![1.0_f32; 100];
        values[57] = f32::NAN;
        let error = finite("decoding", &Tensor::from_slice(&values)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("decoding produced values that are not finite")
        );
        values[57] = f32::MAX;
        values[58] = f32::MAX;
        finite("decoding", &Tensor::from_slice(&values)).unwrap();
    }
}
