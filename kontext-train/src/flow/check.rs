//! The checks of a recipe that need its model's headers and its data's lines, and no computation.

use kontext_core::{Device, Error, Kind, Result, check_writable, create_folder};
use kontext_device::device;
use kontext_dit::{LinearPart, linear_parts};

use super::method::Method;
use super::recipe::Recipe;
use crate::base::Base;
use crate::dataset::{Dataset, weight_of};

impl Recipe {
    /// Checks all that can be known before any work: the values, the device, the files of the model by their
    /// headers, the layers named by `method.targets`, the memory that training takes at least, and that the
    /// data has an example to train on. Creates the run's folder.
    ///
    /// [`crate::Trainer::open`] begins with it; a program that does something long before can call it first.
    ///
    /// # Errors
    /// Those of [`Recipe::validate`], [`kontext::Checkpoint::find`] and [`Dataset::open`];
    /// [`Error::InvalidArgument`] for a pattern that names no layer; [`Error::Memory`] with the setting to
    /// lower; a checkpoint error if no line of the data is to be trained on; [`Error::Io`] if the run's
    /// folder cannot be written.
    pub fn check(&self) -> Result<()> {
        self.validate()?;
        let device = self.device()?;
        let base = Base::open(&self.model)?;
        self.check_memory(&base, &self.parts(&base)?, device, compute_kind(device))?;
        let data = &self.data;
        let used = |item: &crate::dataset::Item| item.split == data.split && weight_of(item, &data.weights) > 0.0;
        if !Dataset::open(&data.folder)?.items.iter().any(used) {
            return Err(no_items(self));
        }
        create_folder(&self.out)?;
        check_writable(self.out.join("state.safetensors"))
    }

    /// Returns the device of the run.
    pub(super) fn device(&self) -> Result<Device> {
        let named = self.device.as_deref().map(device::parse);
        named.unwrap_or_else(|| Ok(device::best()))
    }

    /// Returns the layers that get adapters.
    fn parts(&self, base: &Base) -> Result<Vec<LinearPart>> {
        match &self.method {
            Method::Full => Ok(Vec::new()),
            Method::Lora(lora) => lora.layers(&linear_parts(&base.config)?),
        }
    }
}

/// Returns the dtype in which a device computes.
pub(super) fn compute_kind(device: Device) -> Kind {
    if device.is_cuda() { Kind::BFloat16 } else { Kind::Float }
}

/// The error for data without an example to train on.
pub(super) fn no_items(recipe: &Recipe) -> Error {
    let reason = format!(
        "no item of split `{}` has a weight above 0; name another split",
        recipe.data.split
    );
    Error::config(&recipe.data.folder, reason)
}
