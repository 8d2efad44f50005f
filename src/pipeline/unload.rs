//! Unloading the parts of a pipeline between runs.

use kontext_device::memory;

use super::Pipeline;
use crate::memory::LoadedParts;

impl Pipeline {
    /// Frees the memory of the parts, on the device and the host; the next run loads them from their files
    /// again, with the same LoRAs, and returns the same bytes.
    ///
    /// Runs on other threads finish with the parts that they use, whose memory is freed at their end; a part that
    /// is being loaded is waited for. The cache of encoded prompts and images is emptied, too.
    /// Returns `false`, and frees nothing, for a pipeline assembled from given parts, which could not be loaded
    /// again.
    ///
    /// # Example
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers)?;
    /// use kontext::{Device, Pipeline, Request};
    /// let pipe = Pipeline::builder().device(Device::Cpu).load(folder.path())?;
    /// let request = Request::generate("a cat").size(32, 32).steps(1).seed(1);
    /// let before = pipe.run(&request)?;
    /// assert!(pipe.is_loaded() && pipe.unload() && !pipe.is_loaded());
    /// assert_eq!(pipe.run(&request)?.image, before.image);
    /// # Ok::<(), kontext::Error>(())
    /// ```
    pub fn unload(&self) -> bool {
        if self.files.is_none() {
            return false;
        }
        self.parts.text.unload();
        self.parts.dit.unload();
        self.parts.vae.unload();
        self.loras.forget_prepared();
        self.encodings.clear();
        self.previews.unload();
        memory::give_back();
        memory::give_back_on(self.device);
        true
    }

    /// Returns `true` if a part is in memory between runs: always for a resident or streamed pipeline, except
    /// after [`Pipeline::unload`]; never for a staged one.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loaded_parts() != LoadedParts::default()
    }

    /// Returns the parts that are in memory.
    pub(super) fn loaded_parts(&self) -> LoadedParts {
        LoadedParts {
            text: self.parts.text.in_memory().is_some(),
            dit: self.parts.dit.in_memory().is_some(),
            vae: self.parts.vae.in_memory().is_some(),
        }
    }
}
