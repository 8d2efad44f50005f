//! What is trained: named tensors that share one block of memory.

use kontext_core::{Device, Error, Kind, Result, Tensor};
use kontext_nn::Weights;

/// What to do where a run that saves its state has failed.
pub(crate) const RESUME: &str = "the last saved state is kept; resume from it with a lower rate.peak";

/// Named trainable tensors in f32.
///
/// All of them are views of one flat tensor, so that the optimizer, the moving average and the norm
/// of the gradient are a handful of operations, however many tensors there are.
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
    /// Takes a copy of these tensors onto the device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there are none, [`Error::Torch`] where memory is short.
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

    /// The weights for a model to be built from: the trainable tensors themselves, so that a
    /// backward pass through the model reaches them.
    pub fn weights(&self) -> Weights {
        Weights::from_tensors(self.entries.iter().map(|e| (e.name.clone(), e.leaf.shallow_clone())))
    }

    /// The trainable tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.iter().find(|e| e.name == name).map(|e| &e.leaf)
    }

    /// The flat tensor `[N]` in f32 that all of them are views of.
    pub(crate) fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Number of trained values.
    #[must_use]
    pub fn count(&self) -> i64 {
        self.flat.numel() as i64
    }

    /// The tensors by name, cut out of a flat tensor of the same layout (the values themselves, or
    /// their moving average).
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

    /// The present values by name.
    ///
    /// # Errors
    /// [`Error::Torch`] where libtorch fails.
    pub fn values(&self) -> Result<Vec<(String, Tensor)>> {
        self.named(&self.flat)
    }

    /// Puts other values into the tensors.
    ///
    /// # Errors
    /// [`Error::Torch`] where the sizes differ.
    pub fn set(&self, flat: &Tensor) -> Result<()> {
        self.flat.shallow_clone().f_copy_(flat)?;
        Ok(())
    }

    /// Runs `work` with other values in the tensors, and puts the present ones back.
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

    /// The gradient that backward passes have left, `[N]`; zero where none has come by.
    ///
    /// # Errors
    /// [`Error::Torch`] where libtorch fails.
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

    /// Takes the gradient `[N]` that backward passes have left, shortened to the norm `clip` if it is longer,
    /// and its norm before that; `stage` and `hint` name a failure.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where the loss or the gradient is not finite.
    pub(crate) fn take_gradient(
        &self,
        loss: f64,
        clip: f64,
        stage: impl FnOnce() -> String,
        hint: &str,
    ) -> Result<(Tensor, f64)> {
        let gradient = self.gradient()?;
        self.zero_grad();
        let norm = gradient.f_norm()?.f_double_value(&[])?;
        if !(loss.is_finite() && norm.is_finite()) {
            return Err(Error::NotFinite {
                stage: stage(),
                hint: hint.to_owned(),
            });
        }
        Ok((
            if norm > clip {
                gradient.f_mul_scalar(clip / norm)?
            } else {
                gradient
            },
            norm,
        ))
    }

    /// The gradients by name.
    ///
    /// # Errors
    /// [`Error::Torch`] where libtorch fails.
    pub fn gradients(&self) -> Result<Vec<(String, Tensor)>> {
        self.named(&self.gradient()?)
    }

    /// Forgets the gradients.
    pub fn zero_grad(&self) {
        for entry in &self.entries {
            entry.leaf.shallow_clone().zero_grad();
        }
    }

    /// One for the values of matrices and convolutions, zero for those of norms and biases: what
    /// weight decay pulls at. `[N]`.
    pub(crate) fn decayed(&self) -> Result<Tensor> {
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

    /// Shapes and places of the tensors in the flat one, in order.
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
        // The layer sees what is written into the flat tensor.
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
        let mask: Vec<f32> = Vec::try_from(two().decayed().unwrap()).unwrap();
        assert_eq!(mask, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
