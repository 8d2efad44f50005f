//! The LoRAs of a loaded pipeline, which can change while the model stays in memory, and those of a run.
//!
//! A run resolves its LoRAs once, at its start, and uses their adapters for its own forward passes only.
//! Nothing is written to the shared parts, so runs with different LoRAs do not affect each other, and a change
//! of the pipeline's LoRAs is seen by later runs only.

use kontext_core::Result;
use kontext_dit::Dit;
use kontext_text::TextEncoder;

use super::Pipeline;
use super::adapted::{Adapted, PartKind};
use crate::Request;
use crate::lora::{LoadedLora, LoraSet, LoraUse, fused_error};

impl Pipeline {
    /// Returns the loaded LoRAs, in order. Those at a scale other than 0 are active: they apply to requests
    /// that name none.
    #[must_use]
    pub fn loras(&self) -> Vec<LoadedLora> {
        self.loras.loaded().to_vec()
    }

    /// Replaces all LoRAs without reading the model again. On an error nothing changes.
    ///
    /// Like all changes of LoRAs it affects later runs only; a run keeps those that it began with.
    ///
    /// # Errors
    /// Those of [`Lora::open`](crate::Lora::open) and [`Lora::adapters`](crate::Lora::adapters),
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a scale that is not finite, a duplicate
    /// name, or a pattern of [`LoraUse::layer_scale`] without effect, and
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) if LoRAs were fused with the weights.
    ///
    /// # Example
    /// ```no_run
    /// use kontext::{LoraUse, Pipeline};
    /// let pipe = Pipeline::load("FLUX.1-Kontext-dev")?;
    /// pipe.set_loras([LoraUse::new("watercolour.safetensors").scale(0.8), "faces.safetensors".into()])?;
    /// pipe.set_lora_scale("watercolour", 0.3)?;
    /// pipe.remove_lora("faces")?;
    /// # Ok::<(), kontext::Error>(())
    /// ```
    pub fn set_loras(&self, loras: impl IntoIterator<Item = LoraUse>) -> Result<()> {
        let opened = LoraSet::open(loras)?;
        self.change_loras(|loras| {
            *loras = opened;
            Ok(())
        })
    }

    /// Adds a LoRA: to the active ones, or only for requests that name it ([`LoraUse::inactive`]).
    ///
    /// # Errors
    /// Those of [`Pipeline::set_loras`].
    pub fn add_lora(&self, lora: impl Into<LoraUse>) -> Result<()> {
        let opened = LoadedLora::open(lora.into())?;
        self.change_loras(|loras| loras.add(opened))
    }

    /// Changes the scale of a LoRA, by its name. At 0 it stays loaded for requests that name it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an unknown name, and those of
    /// [`Pipeline::set_loras`].
    pub fn set_lora_scale(&self, name: &str, scale: f64) -> Result<()> {
        self.change_loras(|loras| loras.set_scale(name, scale))
    }

    /// Removes a LoRA, by its name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an unknown name, and
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) if LoRAs were fused with the weights.
    pub fn remove_lora(&self, name: &str) -> Result<()> {
        self.change_loras(|loras| loras.remove(name))
    }

    /// Changes the loaded LoRAs; on an error nothing changes. Concurrent changes wait for each other.
    fn change_loras(&self, change: impl FnOnce(&mut LoraSet) -> Result<()>) -> Result<()> {
        if self.fused {
            return Err(fused_error());
        }
        let _guard = self.loras.begin_change();
        let mut loras = self.loras.loaded();
        change(&mut loras)?;
        self.activate(loras)
    }

    /// Sets the LoRAs of a new pipeline; `fused` means that the transformer's weights already contain them.
    pub(crate) fn put_loras(&mut self, loras: LoraSet, fused: bool) -> Result<()> {
        self.fused = fused;
        self.activate(loras)
    }

    /// Checks LoRAs, prepares the active ones and replaces the loaded ones.
    fn activate(&self, loras: LoraSet) -> Result<()> {
        let (text, dit) = (self.parts.text.in_memory(), self.parts.dit.in_memory());
        let (text, dit) = (text.as_deref(), dit.as_deref());
        loras.check_patterns(&self.parts.config)?;
        match (text, dit) {
            (Some(text), Some(dit)) => loras.check(text, dit)?,
            // Parts that are not in memory get adapters when they are loaded; a mismatch is reported now.
            _ => drop(loras.transformer(&self.parts.config)?),
        }
        let active = loras.active();
        let sets = &self.loras;
        let text = text.map(|text| {
            let found = sets.find(text, &active);
            found.map_or_else(|| active.prepare_text(text), Ok)
        });
        let text = text.transpose()?;
        let dit = dit.filter(|_| !self.fused);
        let dit = dit.map(|dit| {
            let found = sets.find(dit, &active);
            found.map_or_else(|| active.prepare_dit(dit), Ok)
        });
        let dit = dit.transpose()?;
        sets.replace(loras);
        for (kind, adapters) in [(PartKind::Text, text), (PartKind::Transformer, dit)] {
            if let Some(adapters) = adapters {
                sets.add(kind, &active, &adapters);
            }
        }
        Ok(())
    }

    /// Returns the LoRAs of a run of this request: those that it names, otherwise the active ones.
    pub(super) fn chosen_loras(&self, request: &Request) -> Result<LoraSet> {
        match &request.loras {
            Some(_) if self.fused => Err(fused_error()),
            Some(names) => self.loras.loaded().named(names),
            None => Ok(self.loras.loaded().active()),
        }
    }

    /// Leases the text encoders with the adapters of these LoRAs.
    pub(super) fn lease_text(&self, loras: &LoraSet) -> Result<Adapted<'_, TextEncoder>> {
        let part = self.parts.text.lease()?;
        Adapted::new(part, loras, &self.loras, LoraSet::prepare_text)
    }

    /// Leases the transformer with the adapters of these LoRAs; with none if its weights contain them.
    pub(super) fn lease_dit(&self, loras: &LoraSet) -> Result<Adapted<'_, Dit>> {
        let none = LoraSet::default();
        let loras = if self.fused { &none } else { loras };
        let part = self.parts.dit.lease()?;
        Adapted::new(part, loras, &self.loras, LoraSet::prepare_dit)
    }
}
