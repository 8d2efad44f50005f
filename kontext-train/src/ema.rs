//! Exponential moving average of the trained values.

use kontext_core::{Result, Tensor};

use crate::Params;

/// The average of the values over the last steps: less noisy than the values themselves.
#[derive(Debug)]
pub struct Ema {
    average: Tensor, // `[N]`
    decay: f64,
}

impl Ema {
    /// Starts at the present values. `decay` is in [0, 1): 0.999 remembers about 1000 steps.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] where memory is short.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        Ok(Self {
            average: params.flat().f_detach_copy()?,
            decay,
        })
    }

    /// Takes in the values after step `step` (from 0). At the beginning the memory is short, so that
    /// the first values, which are random, are forgotten.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] where libtorch fails.
    pub fn update(&mut self, params: &Params, step: u64) -> Result<()> {
        let early = (1.0 + step as f64) / (10.0 + step as f64);
        let _ = self.average.f_lerp_(params.flat(), 1.0 - self.decay.min(early))?;
        Ok(())
    }

    /// The average, `[N]`.
    pub fn average(&self) -> &Tensor {
        &self.average
    }

    /// Takes up where a file left off.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] where the sizes differ.
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
