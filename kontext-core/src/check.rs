//! Checks of tensors: their shapes, their finiteness, and their distance to a reference.

use tch::Tensor;

use crate::{Error, Result, Stage};

/// Checks a tensor's rank and its sizes (`None` accepts any size).
///
/// `expected` is the shape as the documentation writes it; it appears in the error.
///
/// # Errors
/// [`Error::Shape`] if the rank or one of the given sizes differs.
pub fn shape(tensor: &'static str, value: &Tensor, expected: &'static str, sizes: &[Option<i64>]) -> Result<()> {
    let got = value.size();
    let fits = got.len() == sizes.len() && got.iter().zip(sizes).all(|(g, s)| s.is_none_or(|s| s == *g));
    if fits {
        Ok(())
    } else {
        Err(Error::Shape { tensor, expected, got })
    }
}

/// Returns the sizes of a tensor of rank `N`.
///
/// # Errors
/// [`Error::Shape`] if the rank differs.
pub fn dims<const N: usize>(tensor: &'static str, value: &Tensor, expected: &'static str) -> Result<[i64; N]> {
    let got = value.size();
    <[i64; N]>::try_from(got.as_slice()).map_err(|_| Error::Shape { tensor, expected, got })
}

/// Fails if a tensor holds a NaN or an infinity. Synchronises with the device.
///
/// # Errors
/// [`Error::NotFinite`] with the stage that produced the tensor.
pub fn finite(stage: Stage, value: &Tensor) -> Result<()> {
    finite_flag(value).and_then(|flag| read_finite_flag(stage, &flag))
}

/// Returns `true` if a tensor holds neither a NaN nor an infinity. Synchronises with the device.
///
/// # Errors
/// [`Error::Torch`] if libtorch fails.
pub fn is_finite(value: &Tensor) -> Result<bool> {
    finite_flag(value).and_then(|flag| is_set(&flag))
}

/// Returns a one-element tensor on the value's device: true if every element is finite. Does not synchronise.
///
/// The sum of absolute values is finite only if every element is. It takes one pass over the memory and no
/// mask, and runs in f64, as the sum of many large f32 values could overflow in f32.
///
/// # Errors
/// [`Error::Torch`] if libtorch fails.
pub fn finite_flag(value: &Tensor) -> Result<Tensor> {
    Ok(value.f_abs()?.f_sum(tch::Kind::Double)?.f_isfinite()?)
}

/// Reads a flag of [`finite_flag`]. Synchronises with the device.
///
/// # Errors
/// [`Error::NotFinite`] with the stage that produced the tensor.
pub fn read_finite_flag(stage: Stage, flag: &Tensor) -> Result<()> {
    if is_set(flag)? {
        return Ok(());
    }
    let hint = "NaN or infinity: damaged weights, or a dtype too narrow for them; try f32".to_owned();
    Err(Error::NotFinite { stage, hint })
}

fn is_set(flag: &Tensor) -> Result<bool> {
    Ok(flag.f_int64_value(&[])? != 0)
}

/// Returns the relative distance of a tensor to its reference, `|a - b| / |b|` (L2 norms in f64).
///
/// # Errors
/// [`Error::Torch`] if the shapes do not agree.
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
        let error = finite(Stage::Decode, &Tensor::from_slice(&values)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("decoding the image produced values that are not finite")
        );
        values[57] = f32::MAX;
        values[58] = f32::MAX;
        finite(Stage::Decode, &Tensor::from_slice(&values)).unwrap();
        assert!(is_finite(&Tensor::from_slice(&values)).unwrap());
    }
}
