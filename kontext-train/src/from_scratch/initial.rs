//! Initial weights of a new model.

use kontext_core::{Device, Kind, Result, Tensor, noise};
use kontext_dit::{Dit, DitConfig};
use kontext_nn::Weights;

/// Draws initial values for the tensors that `build` requests: matrices and convolutions normal with variance
/// 1 / fan-in, norm weights one, biases zero.
///
/// Each tensor is a function of its name, its shape and the seed.
///
/// # Errors
/// Those of `build`.
pub fn initial(seed: u64, build: impl FnOnce(&Weights) -> Result<()>) -> Result<Vec<(String, Tensor)>> {
    let blank = Weights::blank();
    build(&blank)?;
    let draw = |(name, shape): (String, Vec<i64>)| -> Result<(String, Tensor)> {
        let value = tensor(&name, &shape, seed)?;
        Ok((name, value))
    };
    blank.shapes().into_iter().map(draw).collect()
}

fn tensor(name: &str, shape: &[i64], seed: u64) -> Result<Tensor> {
    let options = (Kind::Float, Device::Cpu);
    match shape {
        [_, rest @ ..] if !rest.is_empty() => {
            let seed = u64::from(crc32fast::hash(name.as_bytes())).wrapping_add(seed);
            let fan_in = rest.iter().product::<i64>() as f64;
            Ok(noise::randn(shape, seed, Kind::Float, Device::Cpu)?.f_div_scalar(fan_in.sqrt())?)
        }
        _ if name.ends_with("weight") || name.ends_with("scale") => Ok(Tensor::f_ones(shape, options)?),
        _ => Ok(Tensor::f_zeros(shape, options)?),
    }
}

/// Draws the weights of a new transformer. Modulation and the last layer are zero, so that every block starts
/// as the identity and the first velocity is zero (adaLN-Zero, arXiv 2212.09748 section 3.2).
///
/// # Errors
/// Those of [`Dit::new`].
pub fn initial_transformer(config: &DitConfig, seed: u64) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = initial(seed, |w| Dit::new(w, config, |_| ()).map(drop))?;
    for (name, value) in &mut tensors {
        let zero = name.contains("_mod.lin") || name.contains("modulation.lin") || name.starts_with("final_layer.");
        if zero {
            *value = value.f_zeros_like()?;
        }
    }
    Ok(tensors)
}
