//! Trained parameters: named tensors in one contiguous block of memory.

use kontext_core::{Device, Error, Kind, Result, Tensor};
use kontext_nn::Weights;

/// Named trainable tensors in f32.
///
/// All are views of one flat tensor, so that the optimizer, the moving average and the gradient norm take a
/// handful of operations, regardless of the number of tensors.
#[derive(Debug)]
pub struct Params {
    flat: Tensor,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    offset: i64,
    leaf: Tensor,
}

impl Params {
    /// Copies these tensors to the device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are none, [`Error::Torch`] if memory is short.
    pub fn new(tensors: &[(String, Tensor)], device: Device) -> Result<Self> {
        if tensors.is_empty() {
            return Err(Error::invalid("tensors to train", "at least one", 0));
        }
        let flat = |(_, t): &(String, Tensor)| -> Result<Tensor> {
            Ok(t.f_detach()?
                .f_to_kind(Kind::Float)?
                .f_to_device(device)?
                .f_reshape([-1])?)
        };
        let flat = Tensor::f_cat(&tensors.iter().map(flat).collect::<Result<Vec<_>>>()?, 0)?;
        let mut entries = Vec::with_capacity(tensors.len());
        let mut offset = 0;
        for (name, tensor) in tensors {
            let count = tensor.numel() as i64;
            let leaf = flat.f_narrow(0, offset, count)?.f_reshape(tensor.size())?.f_detach()?;
            entries.push(Entry {
                name: name.clone(),
                offset,
                leaf: leaf.f_set_requires_grad(true)?,
            });
            offset += count;
        }
        Ok(Self { flat, entries })
    }

    /// Returns the trainable tensors as weights to build a model from; a backward pass through the model
    /// reaches them.
    pub fn weights(&self) -> Weights {
        Weights::from_tensors(self.entries.iter().map(|e| (e.name.clone(), e.leaf.shallow_clone())))
    }

    /// Returns the trainable tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.iter().find(|e| e.name == name).map(|e| &e.leaf)
    }

    /// Returns the flat tensor `[N]` in f32 that holds all values.
    pub(crate) fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Returns the number of trained values.
    #[must_use]
    pub fn count(&self) -> i64 {
        self.flat.numel() as i64
    }

    /// Splits a flat tensor of the same layout (the values themselves, or their moving average) into tensors
    /// by name.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of values.
    pub fn named(&self, flat: &Tensor) -> Result<Vec<(String, Tensor)>> {
        if flat.size() != self.flat.size() {
            return Err(Error::Shape {
                tensor: "flat",
                expected: "[number of trained values]",
                got: flat.size(),
            });
        }
        let cut = |e: &Entry| -> Result<(String, Tensor)> {
            let values = flat.f_narrow(0, e.offset, e.leaf.numel() as i64)?;
            Ok((e.name.clone(), values.f_reshape(e.leaf.size())?.f_detach()?))
        };
        self.entries.iter().map(cut).collect()
    }

    /// Returns the current values by name.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn values(&self) -> Result<Vec<(String, Tensor)>> {
        self.named(&self.flat)
    }

    /// Overwrites the values.
    ///
    /// # Errors
    /// [`Error::Torch`] if the sizes differ.
    pub fn set(&self, flat: &Tensor) -> Result<()> {
        self.flat.shallow_clone().f_copy_(flat)?;
        Ok(())
    }

    /// Runs `work` with other values in the tensors, then restores the current ones.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn with_values<T>(&self, flat: &Tensor, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let kept = self.flat.f_detach_copy()?;
        self.set(flat)?;
        let result = work();
        self.set(&kept)?;
        result
    }

    /// Returns the accumulated gradient `[N]`; zero for tensors that no backward pass has reached.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn gradient(&self) -> Result<Tensor> {
        let part = |e: &Entry| -> Result<Tensor> {
            let grad = e.leaf.f_grad()?;
            Ok(if grad.defined() {
                grad.f_reshape([-1])?
            } else {
                e.leaf.f_zeros_like()?.f_reshape([-1])?.f_detach()?
            })
        };
        Ok(Tensor::f_cat(
            &self.entries.iter().map(part).collect::<Result<Vec<_>>>()?,
            0,
        )?)
    }

    /// Returns the gradients by name.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn gradients(&self) -> Result<Vec<(String, Tensor)>> {
        self.named(&self.gradient()?)
    }

    /// Resets the gradients.
    pub fn zero_grad(&self) {
        for entry in &self.entries {
            entry.leaf.shallow_clone().zero_grad();
        }
    }

    /// Returns the weight-decay mask `[N]`: one for the values of matrices and convolutions, zero for those
    /// of norms and biases.
    pub(crate) fn weight_decay_mask(&self) -> Result<Tensor> {
        let part = |e: &Entry| -> Result<Tensor> {
            let value = if e.leaf.dim() > 1 { 1.0 } else { 0.0 };
            Ok(Tensor::f_full(
                [e.leaf.numel() as i64],
                value,
                (Kind::Float, e.leaf.device()),
            )?)
        };
        Ok(Tensor::f_cat(
            &self.entries.iter().map(part).collect::<Result<Vec<_>>>()?,
            0,
        )?)
    }

    /// Iterates over the names, offsets in the flat tensor, and shapes of the tensors, in order.
    pub(crate) fn layout(&self) -> impl Iterator<Item = (&str, i64, Vec<i64>)> {
        self.entries.iter().map(|e| (e.name.as_str(), e.offset, e.leaf.size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Params {
        let tensors = [("a.weight".to_owned(), Tensor::ones([2, 3], (Kind::Float, Device::Cpu)))];
        let bias = ("a.bias".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]));
        Params::new(&[&tensors[..], &[bias]].concat_tensors(), Device::Cpu).unwrap()
    }

    trait Concat {
        fn concat_tensors(&self) -> Vec<(String, Tensor)>;
    }

    impl Concat for [&[(String, Tensor)]; 2] {
        fn concat_tensors(&self) -> Vec<(String, Tensor)> {
            self.iter()
                .flat_map(|part| part.iter().map(|(n, t)| (n.clone(), t.shallow_clone())))
                .collect()
        }
    }

    #[test]
    fn a_gradient_reaches_the_flat_values() {
        let params = two();
        let linear = kontext_nn::Linear::new(&params.weights().at("a"), 3, 2).unwrap();
        let x = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).unsqueeze(0);
        linear.forward(&x).unwrap().sum(Kind::Float).backward();
        let gradient: Vec<f32> = Vec::try_from(params.gradient().unwrap()).unwrap();
        assert_eq!(gradient, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 1.0]);
        // The layer sees writes to the flat tensor.
        params.set(&Tensor::zeros([8], (Kind::Float, Device::Cpu))).unwrap();
        assert_eq!(
            linear.forward(&x).unwrap().abs().sum(Kind::Float).double_value(&[]),
            0.0
        );
        params.zero_grad();
        assert_eq!(params.gradient().unwrap().abs().sum(Kind::Float).double_value(&[]), 0.0);
    }

    #[test]
    fn biases_do_not_decay() {
        let mask: Vec<f32> = Vec::try_from(two().weight_decay_mask().unwrap()).unwrap();
        assert_eq!(mask, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
