//! AdamW (Adam with decoupled weight decay), optionally with Muon for the transformer's matrices.
//!
//! Source: pytorch/pytorch v2.11.0 `torch/optim/adamw.py`, `_single_tensor_adamw`; Loshchilov and Hutter,
//! "Decoupled Weight Decay Regularization", algorithm 2.

use kontext_core::range::within;
use kontext_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::Params;
use super::muon::Muon;
use crate::bounds::DECAY;

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay rate of the first moment (beta1), from 0 to 0.9999999. Default 0.9.
    pub beta1: f64,
    /// Decay rate of the second moment (beta2), from 0 to 0.9999999. Default 0.95: gradients at high and low
    /// noise differ, and a shorter average forgets an outlier sooner.
    pub beta2: f64,
    /// Added to the root of the second moment, from 1e-16 to 1. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay, from 0 to 100, multiplied by the learning rate; skips norms and biases.
    /// Default 0.01.
    pub weight_decay: f64,
    /// If set, the updates of matrices within the transformer's blocks are orthogonalised (Muon). Training
    /// from scratch then takes about half the steps; fine-tuning gains little. Default: not set.
    pub muon: bool,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.01,
            muon: false,
        }
    }
}

impl AdamWConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`], naming the field.
    pub fn validate(&self) -> Result<()> {
        within("optimizer.beta1", self.beta1, DECAY)?;
        within("optimizer.beta2", self.beta2, DECAY)?;
        within("optimizer.eps", self.eps, 1e-16..=1.0)?;
        within("optimizer.weight_decay", self.weight_decay, 0.0..=100.0).map(drop)
    }
}

/// The optimizer with its state, all in f32.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    mean: Tensor,   // `[N]`
    square: Tensor, // `[N]`
    weight_decay_mask: Tensor,
    muon: Option<Muon>,
    steps: i64,
}

impl AdamW {
    /// Creates an optimizer for these values.
    ///
    /// # Errors
    /// Those of [`AdamWConfig::validate`], and [`kontext_core::Error::Torch`] if memory is short.
    pub fn new(params: &Params, config: AdamWConfig) -> Result<Self> {
        config.validate()?;
        let zeros = || params.flat().f_zeros_like();
        Ok(Self {
            config,
            mean: zeros()?,
            square: zeros()?,
            weight_decay_mask: params.weight_decay_mask()?,
            muon: config.muon.then(|| Muon::new(params)),
            steps: 0,
        })
    }

    /// Takes one step along the gradient `[N]` at the learning rate `lr`.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if the sizes differ.
    pub fn step(&mut self, params: &Params, gradient: &Tensor, lr: f64) -> Result<()> {
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
            ..
        } = self.config;
        self.steps += 1;
        let steps = self.steps as f64;
        let mut values = params.flat().shallow_clone();
        if weight_decay > 0.0 {
            let kept = self
                .weight_decay_mask
                .f_mul_scalar(-lr * weight_decay)?
                .f_add_scalar(1.0)?;
            let _ = values.f_mul_(&kept)?;
        }
        let _ = self.mean.f_lerp_(gradient, 1.0 - beta1)?;
        let square = gradient.f_square()?.f_mul_scalar(1.0 - beta2)?;
        let _ = self.square.f_mul_scalar_(beta2)?.f_add_(&square)?;
        let root = self
            .square
            .f_sqrt()?
            .f_div_scalar_((1.0 - beta2.powf(steps)).sqrt())?
            .f_add_scalar_(eps)?;
        let mut step = self.mean.f_div(&root)?.f_div_scalar_(1.0 - beta1.powf(steps))?;
        if let Some(muon) = &self.muon {
            // Nesterov momentum: the first moment after another step of the same gradient.
            muon.direct(&self.mean.f_lerp(gradient, 1.0 - beta1)?, &step)?;
        }
        let _ = values.f_add_(&step.f_mul_scalar_(-lr)?)?;
        Ok(())
    }

    /// Returns the saved state: first and second moment, `[N]` each, and the number of steps.
    pub fn state(&self) -> (&Tensor, &Tensor, i64) {
        (&self.mean, &self.square, self.steps)
    }

    /// Restores a saved state.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if the sizes differ.
    pub fn restore(&mut self, mean: &Tensor, square: &Tensor, steps: i64) -> Result<()> {
        self.mean.f_copy_(mean)?;
        self.square.f_copy_(square)?;
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, Kind};

    use super::*;

    /// Two steps by hand: with gradients 1 and 1, the bias-corrected first moment and the root of the second
    /// are 1, so each step is -lr.
    #[test]
    fn a_constant_gradient_moves_by_the_learning_rate() {
        let params = Params::new(
            &[("bias".to_owned(), Tensor::from_slice(&[1.0_f32, -1.0]))],
            Device::Cpu,
        )
        .unwrap();
        let mut adam = AdamW::new(&params, AdamWConfig::default()).unwrap();
        for _ in 0..2 {
            adam.step(&params, &Tensor::from_slice(&[1.0_f32, -3.0]), 0.1).unwrap();
        }
        let values: Vec<f32> = Vec::try_from(params.flat()).unwrap();
        assert!(
            (values[0] - 0.8).abs() < 1e-6 && (values[1] + 0.8).abs() < 1e-6,
            "{values:?}"
        );
    }

    #[test]
    fn decay_pulls_matrices_alone() {
        let tensors = [("w".to_owned(), Tensor::ones([1, 1], (Kind::Float, Device::Cpu)))];
        let params = Params::new(&tensors, Device::Cpu).unwrap();
        let config = AdamWConfig {
            weight_decay: 0.5,
            ..AdamWConfig::default()
        };
        AdamW::new(&params, config)
            .unwrap()
            .step(&params, &Tensor::from_slice(&[0.0_f32]), 0.1)
            .unwrap();
        assert!((params.flat().double_value(&[0]) - 0.95).abs() < 1e-6);
    }
}
