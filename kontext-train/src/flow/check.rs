//! The checks of a recipe that need its model's headers and its data's lines, and no computation.

use std::path::{Path, PathBuf};

use kontext_core::{Device, Error, Kind, Result, check_writable};
use kontext_device::device;
use kontext_dit::{LinearPart, linear_parts};

use super::data::data_digest;
use super::method::Method;
use super::recipe::{DATA_FILES, MODEL_FILES, Recipe};
use super::turn::Critic;
use super::warnings::warnings;
use crate::base::Base;
use crate::dataset::{Dataset, weight_of};
use crate::run::Snapshot;
use crate::run::identity::Identity;
use crate::run::shell::Shell;
use crate::warning::RecipeWarning;

/// A checked recipe's run: the files that it names, opened.
pub(super) struct Opened {
    pub(super) device: Device,
    pub(super) base: Base,
    /// The examples of both splits.
    pub(super) dataset: Dataset,
    pub(super) shell: Shell,
    pub(super) state: Option<Snapshot>,
    pub(super) identity: Identity,
    pub(super) warnings: Vec<RecipeWarning>,
}

impl Recipe {
    /// Checks all that can be known before any work: the values, the device, the files of the model by their
    /// headers, the layers named by `method.targets`, the memory that training takes at least, that the
    /// data has an example to train on, and that a state in the run's folder is of this recipe, model and data.
    /// Creates the run's folder. Returns the settings that have no effect.
    ///
    /// [`crate::Trainer::open`] begins with it; a program that does something long before can call it first.
    ///
    /// # Errors
    /// Those of [`Recipe::validate`], [`kontext::Checkpoint::find`] and [`Dataset::open`];
    /// [`Error::InvalidArgument`] for a pattern that names no layer, and for an `out` whose files would be among
    /// those of the model or replace them; [`Error::Memory`] with the setting to lower; a checkpoint error if no
    /// line of the data is to be trained on, or that names the differences if the state in the folder is of another
    /// recipe, model or data; [`Error::Io`] if the run's folder cannot be written.
    pub fn check(&self) -> Result<Vec<RecipeWarning>> {
        Ok(self.opened()?.warnings)
    }

    /// Checks the recipe, and opens the files that it names.
    pub(super) fn opened(&self) -> Result<Opened> {
        self.validate()?;
        let device = self.device()?;
        let base = Base::open(&self.model)?;
        self.check_out(&base)?;
        if self.method != Method::Full && self.student(&base) != base.config {
            let got = "adapters on a model without a guidance embedding, which the objective trains";
            return Err(Error::invalid("method.kind", "\"full\"", got));
        }
        if let Some(adversarial) = self.objective.adversarial() {
            adversarial.blocks(Critic::blocks_of(&base))?;
        }
        self.check_memory(&base, &self.parts(&base)?, device, compute_kind(device))?;
        let data = &self.data;
        let mut dataset = Dataset::open(&data.folder)?;
        dataset
            .items
            .retain(|item| item.split == data.split || item.split == data.validation);
        let used = |item: &crate::dataset::Item| item.split == data.split && weight_of(item, &data.weights) > 0.0;
        if !dataset.items.iter().any(used) {
            return Err(no_items(self));
        }
        let warnings = warnings(self, &base.config, &dataset);
        let shell = Shell::open(&self.out, "state.safetensors", self.steps, self.every)?;
        check_writable(self.out.join("state.safetensors"))?;
        let state = shell.snapshot()?;
        let mut identity = Identity::new(self, state.as_ref())?;
        if let Some(state) = &state {
            shell.check_steps(state)?;
        }
        identity.digest(MODEL_FILES, base.digest()?)?;
        identity.digest(DATA_FILES, data_digest(&dataset, &self.sizes(&base)))?;
        Ok(Opened {
            device,
            base,
            dataset,
            shell,
            state,
            identity,
            warnings,
        })
    }

    /// Refuses a run's folder that is the model's, is in a part of it, or would put the result in the place of one.
    fn check_out(&self, base: &Base) -> Result<()> {
        // The folder, or the closest that there is.
        let mut above = self.out.ancestors().filter_map(real);
        let Some(folder) = above.next() else {
            return Ok(());
        };
        let out = real(&self.out);
        let result = real(&self.out.join("transformer"));
        let among = base.parts().into_iter().filter_map(real).find(|part| {
            let replaced = result.as_ref().is_some_and(|result| part.starts_with(result));
            replaced || part.is_dir() && folder.starts_with(part)
        });
        if among.is_some() || out.is_some_and(|out| real(base.folder()).as_ref() == Some(&out)) {
            let got = format!(
                "{}, with files of the model {}",
                self.out.display(),
                self.model.display()
            );
            return Err(Error::invalid("out", "a folder of its own for the run", got));
        }
        Ok(())
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

/// Returns the path without links; `None` if there is nothing.
fn real(path: &Path) -> Option<PathBuf> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    path.canonicalize().ok()
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
