//! Exponential moving average of the trained values.

use kontext_core::range::within;
use kontext_core::{Result, Tensor};

use super::Params;
use crate::bounds::DECAY;

/// The EMA of the values: less noisy than the values themselves.
#[derive(Debug)]
pub struct Ema {
    average: Tensor, // `[N]`
    decay: f64,
}

impl Ema {
    /// Starts at the current values. `decay` is from 0 to 0.9999999; 0.999 averages over about 1000 steps.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] for another decay, [`kontext_core::Error::Torch`] if memory
    /// is short.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        within("ema", decay, DECAY)?;
        Ok(Self {
            average: params.flat().f_detach_copy()?,
            decay,
        })
    }

    /// Updates the average with the values after step `step` (from 0). The decay warms up, so that the random
    /// initial values are forgotten.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn update(&mut self, params: &Params, step: u64) -> Result<()> {
        let early = (1.0 + step as f64) / (10.0 + step as f64);
        let _ = self.average.f_lerp_(params.flat(), 1.0 - self.decay.min(early))?;
        Ok(())
    }

    /// Returns the average, `[N]`.
    pub fn average(&self) -> &Tensor {
        &self.average
    }

    /// Restores a saved average.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if the sizes differ.
    pub fn restore(&mut self, average: &Tensor) -> Result<()> {
        self.average.f_copy_(average)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::Device;

    use super::*;

    #[test]
    fn the_average_follows_the_values() {
        let params = Params::new(&[("w".to_owned(), Tensor::from_slice(&[0.0_f32]))], Device::Cpu).unwrap();
        let mut ema = Ema::new(&params, 0.5).unwrap();
        params.set(&Tensor::from_slice(&[1.0_f32])).unwrap();
        ema.update(&params, 1000).unwrap();
        assert!((ema.average().double_value(&[0]) - 0.5).abs() < 1e-6);
    }
}
