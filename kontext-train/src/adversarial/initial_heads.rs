//! The sizes of a critic's heads and their initial values.

use kontext_core::{Device, Kind, Result, Tensor};
use rand::{Rng, RngExt};

use crate::run::random::{Stream, generator};

/// Number of frequencies of a level's embedding.
pub(super) const FREQUENCIES: i64 = 32;

/// Sizes of the heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadSizes {
    /// Number of heads.
    pub(crate) count: usize,
    /// Channels of the teacher's tokens.
    pub(crate) channels: i64,
    /// Channels of the pooled prompt.
    pub(crate) pooled: i64,
}

impl HeadSizes {
    /// Returns the number of values of heads of this width.
    pub(crate) fn values(self, width: i64) -> i64 {
        let [channels, condition] = [self.channels, self.pooled + 2 * FREQUENCIES];
        let convolutions = channels + 9 * width + width;
        // A bias of each of four layers, and two norms of two vectors.
        self.count as i64 * width * (convolutions + condition + 4 + 4)
    }
}

/// Draws the values as torch does: weights and biases uniform within the inverse root of the number of
/// inputs.
pub(super) fn initial(width: i64, sizes: HeadSizes, seed: u64) -> Result<Vec<(String, Tensor)>> {
    let ones = |value: f64| Tensor::f_full([width], value, (Kind::Float, Device::Cpu));
    let condition = sizes.pooled + 2 * FREQUENCIES;
    let mut tensors = Vec::new();
    for index in 0..sizes.count {
        let mut rng = generator(seed, Stream::Heads, index as u64);
        for (name, shape) in [
            ("reduce", vec![width, sizes.channels, 1, 1]),
            ("residual", vec![width, width, 3, 3]),
            ("out", vec![width, width, 1, 1]),
            ("condition", vec![width, condition]),
        ] {
            let bound = 1.0 / (shape.iter().skip(1).product::<i64>() as f32).sqrt();
            let weight = uniform(&mut rng, &shape, bound)?;
            let bias = uniform(&mut rng, &[width], bound)?;
            tensors.extend([
                (format!("{index}.{name}.weight"), weight),
                (format!("{index}.{name}.bias"), bias),
            ]);
        }
        for norm in ["norm1", "norm2"] {
            tensors.push((format!("{index}.{norm}.weight"), ones(1.0)?));
            tensors.push((format!("{index}.{norm}.bias"), ones(0.0)?));
        }
    }
    Ok(tensors)
}

fn uniform(rng: &mut impl Rng, shape: &[i64], bound: f32) -> Result<Tensor> {
    let count = shape.iter().product::<i64>();
    let values: Vec<f32> = (0..count).map(|_| rng.random_range(-bound..bound)).collect();
    Ok(Tensor::f_from_slice(&values)?.f_reshape(shape)?)
}
