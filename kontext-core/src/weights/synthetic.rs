//! Weights made from a seed and their names.

use tch::{Device, Kind, Tensor};

use crate::{Result, noise};

/// Elements above which a tensor is drawn on a CUDA device instead of by the portable generator:
/// a 12 B model is made in seconds there, and nobody compares its values with another program.
const PORTABLE: i64 = 1 << 26;

/// Norm weights vary around one, and biases around zero, by this much.
const SPREAD: f64 = 0.1;

/// The tensor that every program makes for this name, shape and seed (CPU, f32); without a seed,
/// zeros that share one element of memory.
pub(super) fn tensor(name: &str, shape: &[i64], seed: Option<u64>, device: Device) -> Result<Tensor> {
    let Some(seed) = seed else {
        return Ok(Tensor::f_zeros([1; 0], (Kind::Float, device))?.f_expand(shape, false)?);
    };
    let z = if device.is_cuda() && shape.iter().product::<i64>() > PORTABLE {
        Tensor::f_randn(shape, (Kind::Float, device))?
    } else {
        noise::randn(shape, u64::from(crc32fast::hash(name.as_bytes())).wrapping_add(seed), Kind::Float, device)?
    };
    Ok(match shape {
        [] => z.f_mul_scalar(SPREAD)?,
        [_] if name.ends_with("weight") || name.ends_with("scale") => z.f_mul_scalar(SPREAD)?.f_add_scalar(1.0)?,
        [_] => z.f_mul_scalar(SPREAD)?,
        [_, rest @ ..] => z.f_div_scalar((rest.iter().product::<i64>() as f64).sqrt())?,
    })
}
