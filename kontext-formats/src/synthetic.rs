//! Synthetic weights, generated from a seed and their names.
//!
//! Small tensors are drawn by the generator of [`noise`], so that other programs can reproduce them. A 12 B
//! model would take minutes on that single-threaded generator: on a CUDA device large tensors are drawn
//! there, each value from the seed and its own index.

use tch::{Device, Kind, Tensor};

use kontext_core::{Result, noise};

/// Number of elements above which a tensor is drawn on a CUDA device instead of by the portable generator:
/// the values of a model of that size are not compared with another program.
const PORTABLE: i64 = 1 << 20;

/// Elements drawn at once on a device; the live temporaries take some 0.3 GB.
const PIECE: i64 = 1 << 24;

/// Spread of norm weights around one, and of biases around zero.
const SPREAD: f64 = 0.1;

/// Generates the f32 tensor of this name, shape and seed on `device`; without a seed, zeros that share one
/// element of memory.
pub(super) fn tensor(name: &str, shape: &[i64], seed: Option<u64>, device: Device) -> Result<Tensor> {
    let Some(seed) = seed else {
        return Ok(Tensor::f_zeros([1; 0], (Kind::Float, device))?.f_expand(shape, false)?);
    };
    let seed = u64::from(crc32fast::hash(name.as_bytes())).wrapping_add(seed);
    let z = if device.is_cuda() && shape.iter().product::<i64>() > PORTABLE {
        drawn_on(device, shape, seed, PIECE)?
    } else {
        noise::randn(shape, seed, Kind::Float, device)?
    };
    Ok(match shape {
        [] => z.f_mul_scalar(SPREAD)?,
        [_] if name.ends_with("weight") || name.ends_with("scale") => z.f_mul_scalar(SPREAD)?.f_add_scalar(1.0)?,
        [_] => z.f_mul_scalar(SPREAD)?,
        [_, rest @ ..] => z.f_div_scalar((rest.iter().product::<i64>() as f64).sqrt())?,
    })
}

/// Draws standard normal values on a device in pieces of this many elements: hashes of the seed and each
/// element's index, through the inverse of the normal distribution. No generator has a state, so neither the
/// order nor the size of the pieces matters.
fn drawn_on(device: Device, shape: &[i64], seed: u64, piece: i64) -> Result<Tensor> {
    let count = shape.iter().product::<i64>();
    let values = Tensor::f_empty([count], (Kind::Float, device))?;
    let mut start = 0;
    while start < count {
        let end = count.min(start.saturating_add(piece));
        let place = Tensor::f_arange_start(start, end, (Kind::Int64, device))?;
        // 23 bits, so that the midpoint of each step is an f32 between 0 and 1.
        let bits = hash(hash(place)?.f_bitwise_xor_(low_bits(seed))?)?.f_bitwise_right_shift_tensor_scalar_(9)?;
        let mut uniform = bits
            .f_to_kind(Kind::Float)?
            .f_add_scalar_(0.5)?
            .f_mul_scalar_(2.0 / f64::from(1 << 23))?;
        let normal = uniform
            .f_sub_scalar_(1.0)?
            .f_erfinv_()?
            .f_mul_scalar_(std::f64::consts::SQRT_2)?;
        values.f_narrow(0, start, end - start)?.f_copy_(&normal)?;
        start = end;
    }
    Ok(values.f_reshape(shape)?)
}

fn low_bits(seed: u64) -> i64 {
    // Both halves count: a model's parts differ in the low one, its tensors in either.
    ((seed ^ (seed >> 32)) & 0xffff_ffff) as i64
}

/// Hashes 32 bits held in i64, in place. Source: "hash32" of Thomas Mueller, whose products stay below 2^63.
fn hash(mut x: Tensor) -> Result<Tensor> {
    for _ in 0..2 {
        let shifted = x.f_bitwise_right_shift_tensor_scalar(16)?;
        x = x
            .f_bitwise_xor_tensor_(&shifted)?
            .f_mul_scalar_(0x045d_9f3b)?
            .f_bitwise_and_(0xffff_ffff_i64)?;
    }
    let shifted = x.f_bitwise_right_shift_tensor_scalar(16)?;
    Ok(x.f_bitwise_xor_tensor_(&shifted)?)
}

#[cfg(test)]
mod tests {
    use kontext_core::check;

    use super::*;

    #[test]
    fn values_drawn_on_a_device_depend_on_seed_and_place_alone() {
        let draw = |seed, piece| drawn_on(Device::Cpu, &[50, 100], seed, piece).unwrap();
        assert!(draw(7, 5000).equal(&draw(7, 999)));
        let distance = check::relative_l2(&draw(7, 5000), &draw(8, 5000)).unwrap();
        // The square root of two, as for independent values.
        assert!((distance - 2.0_f64.sqrt()).abs() < 0.05, "{distance}");
    }

    /// Checks the moments of 1,000,000 values; the bounds are five standard errors.
    #[test]
    fn values_drawn_on_a_device_are_standard_normal() {
        let count = 1_000_000;
        let z = drawn_on(Device::Cpu, &[count], 3, PIECE).unwrap().to_kind(Kind::Double);
        let moment = |power: f64| z.pow_tensor_scalar(power).mean(Kind::Double).double_value(&[]);
        for (power, expected, variance) in [(1.0, 0.0, 1.0), (2.0, 1.0, 2.0), (3.0, 0.0, 15.0), (4.0, 3.0, 96.0)] {
            let bound = 5.0 * (variance / count as f64).sqrt();
            assert!((moment(power) - expected).abs() < bound, "{power}: {}", moment(power));
        }
        assert!(z.isfinite().all().int64_value(&[]) != 0);
        // Neighbours, and elements one row apart, are not correlated.
        for lag in [1, 3072] {
            let (a, b) = (z.narrow(0, 0, count - lag), z.narrow(0, lag, count - lag));
            let product = (a * b).mean(Kind::Double).double_value(&[]);
            assert!(product.abs() < 5.0 / (count as f64).sqrt(), "{lag}: {product}");
        }
    }
}
