//! Random low-rank adapters of a transformer, in f32, as in a training run.

use kontext::{Device, Dit, Kind, Tensor};
use kontext_core::noise;
use kontext_dit::{LinearPart, linear_parts};
use kontext_nn::{Adapters, LinearAdapter};
use kontext_train::Params;

/// Standard deviation of the up matrix; that of the down matrix is 1 / sqrt(inputs).
const UP: f64 = 0.1;

/// Sets random adapters of this rank for the layers chosen by `takes`, and returns their parameters.
pub(crate) fn set(dit: &Dit, device: Device, rank: i64, takes: impl Fn(&LinearPart) -> bool) -> anyhow::Result<Params> {
    let parts: Vec<_> = linear_parts(dit.config())?
        .into_iter()
        .filter(|part| takes(part))
        .collect();
    let mut tensors = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let draw = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, Device::Cpu);
        let down = draw(&[rank, part.input], 2 * index as u64)?.f_div_scalar((part.input as f64).sqrt())?;
        let up = draw(&[part.rows, rank], 2 * index as u64 + 1)?.f_mul_scalar(UP)?;
        tensors.extend([
            (format!("{}.down", part.module), down),
            (format!("{}.up", part.module), up),
        ]);
    }
    let params = Params::new(&tensors, device)?;
    let mut adapters = Adapters::new();
    for part in &parts {
        let matrix = |name: &str| {
            params
                .get(&format!("{}.{name}", part.module))
                .map(Tensor::shallow_clone)
        };
        if let (Some(down), Some(up)) = (matrix("down"), matrix("up")) {
            adapters.add(part.layer.clone(), LinearAdapter::low_rank(down, up, 1.0, part.start)?);
        }
    }
    dit.slots().set(&adapters)?;
    Ok(params)
}
