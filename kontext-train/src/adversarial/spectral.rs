//! Spectral normalisation of a convolution's weight.
//!
//! Source: pytorch/pytorch v2.11.0 `torch/nn/utils/parametrizations.py`, `_SpectralNorm`.

use kontext_core::{Device, Kind, Result, Tensor, noise};

/// Iterations for new vectors: later steps follow a weight that changes little.
const INITIAL_ITERATIONS: usize = 15;
const EPS: f64 = 1e-12;

/// The singular vectors of a weight's greatest singular value, by power iteration.
#[derive(Debug)]
pub(super) struct Spectral {
    /// [rows].
    pub(super) left: Tensor,
    /// [columns].
    pub(super) right: Tensor,
}

impl Spectral {
    /// Starts at random vectors.
    pub(super) fn new(weight: &Tensor, seed: u64, device: Device) -> Result<Self> {
        let matrix = matrix(weight)?;
        let size = matrix.size();
        let draw = |length: i64, seed| unit(&noise::randn(&[length], seed, Kind::Float, device)?);
        let mut spectral = Self {
            left: draw(size[0], seed)?,
            right: draw(size[1], seed.wrapping_add(1))?,
        };
        for _ in 0..INITIAL_ITERATIONS {
            spectral.advance(weight)?;
        }
        Ok(spectral)
    }

    /// Takes one power iteration.
    pub(super) fn advance(&mut self, weight: &Tensor) -> Result<()> {
        let matrix = matrix(weight)?;
        self.left = unit(&matrix.f_mv(&self.right)?)?;
        self.right = unit(&matrix.f_transpose(0, 1)?.f_mv(&self.left)?)?;
        Ok(())
    }

    /// Returns the weight divided by its greatest singular value, by which a gradient passes, too.
    pub(super) fn normalised(&self, weight: &Tensor) -> Result<Tensor> {
        let rows = weight.size()[0];
        let sigma = self.left.f_dot(&weight.f_reshape([rows, -1])?.f_mv(&self.right)?)?;
        Ok(weight.f_div(&sigma)?)
    }
}

fn matrix(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.f_detach()?.f_reshape([weight.size()[0], -1])?)
}

fn unit(vector: &Tensor) -> Result<Tensor> {
    let norm = vector.f_norm()?.f_clamp_min(EPS)?;
    Ok(vector.f_div(&norm)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normalised_weight_has_the_greatest_singular_value_one() {
        let weight = noise::randn(&[5, 3, 2, 2], 3, Kind::Float, Device::Cpu).unwrap();
        let spectral = Spectral::new(&weight, 1, Device::Cpu).unwrap();
        let normalised = spectral.normalised(&weight).unwrap().reshape([5, -1]);
        let (_, values, _) = normalised.svd(true, false);
        assert!((values.max().double_value(&[]) - 1.0).abs() < 1e-3, "{values:?}");
        assert!(values.min().double_value(&[]) < 0.9);
    }
}
