//! A weight in the dtype in which it is held, and in that of a run.

use std::sync::OnceLock;

use kontext_core::{Kind, Result, Tensor};

/// A weight, and a copy of it in the dtype of a run if that is another: made at the first use, then kept, in the
/// same memory format.
#[derive(Debug)]
pub struct InKinds {
    held: Tensor,
    copy: OnceLock<Tensor>,
}

impl InKinds {
    /// Holds a weight.
    #[must_use]
    pub fn new(held: Tensor) -> Self {
        Self {
            held,
            copy: OnceLock::new(),
        }
    }

    /// Returns the weight in the dtype in which it was read.
    pub fn held(&self) -> &Tensor {
        &self.held
    }

    /// Returns the weight in `kind`. The first dtype other than its own is kept, a third one is converted at each
    /// call, and so is a weight in training.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn get(&self, kind: Kind) -> Result<Tensor> {
        if self.held.kind() == kind {
            return Ok(self.held.shallow_clone());
        }
        if let Some(copy) = self.copy.get().filter(|copy| copy.kind() == kind) {
            return Ok(copy.shallow_clone());
        }
        let copy = self.held.f_to_kind(kind)?;
        if !self.held.requires_grad() {
            // If another thread was first, its copy stays and this one is used once.
            let _ = self.copy.set(copy.shallow_clone());
        }
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_made_once_in_the_same_memory_format() {
        let held = Tensor::ones([4, 3, 2, 2], (Kind::Float, kontext_core::Device::Cpu));
        let weight = InKinds::new(crate::ops::channels_last(&held).unwrap());
        let first = weight.get(Kind::BFloat16).unwrap();
        assert_eq!((first.kind(), first.stride()), (Kind::BFloat16, vec![12, 1, 6, 3]));
        assert_eq!(weight.get(Kind::BFloat16).unwrap().data_ptr(), first.data_ptr());
        assert_eq!(weight.get(Kind::Float).unwrap().data_ptr(), weight.held().data_ptr());
        assert_eq!(weight.get(Kind::Half).unwrap().kind(), Kind::Half);
        assert_eq!(weight.get(Kind::BFloat16).unwrap().data_ptr(), first.data_ptr());
    }

    #[test]
    fn a_weight_in_training_is_converted_each_time() {
        let leaf = Tensor::ones([2], (Kind::Float, kontext_core::Device::Cpu)).set_requires_grad(true);
        let weight = InKinds::new(leaf);
        let first = weight.get(Kind::BFloat16).unwrap();
        assert!(first.requires_grad());
        assert_ne!(weight.get(Kind::BFloat16).unwrap().data_ptr(), first.data_ptr());
    }
}
