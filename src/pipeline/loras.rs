//! The LoRAs of a loaded pipeline, which can change while the model stays in memory.

use kontext_core::Result;
use kontext_dit::Dit;
use kontext_nn::PendingAdapters;
use kontext_text::TextEncoder;

use super::Pipeline;
use crate::frozen::Frozen;
use crate::lora::{ActiveLora, LoraSet, LoraUse, fused_error};
use crate::placement::Lease;

impl Pipeline {
    /// Iterates over the LoRAs, in order.
    pub fn loras(&self) -> impl Iterator<Item = &ActiveLora> {
        self.loras.iter()
    }

    /// Replaces all LoRAs without reading the model again. On an error nothing changes.
    ///
    /// # Errors
    /// Those of [`Lora::open`](crate::Lora::open) and [`Lora::adapters`](crate::Lora::adapters),
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a scale that is not finite or a
    /// duplicate name, and [`Error::Checkpoint`](crate::Error::Checkpoint) if LoRAs were fused with the
    /// weights.
    ///
    /// # Example
    /// ```no_run
    /// use kontext::{LoraUse, Pipeline};
    /// let mut pipe = Pipeline::load("FLUX.1-Kontext-dev")?;
    /// pipe.set_loras([LoraUse::new("watercolour.safetensors").scale(0.8), "faces.safetensors".into()])?;
    /// pipe.set_lora_scale("watercolour", 0.3)?;
    /// pipe.remove_lora("faces")?;
    /// # Ok::<(), kontext::Error>(())
    /// ```
    pub fn set_loras(&mut self, loras: impl IntoIterator<Item = LoraUse>) -> Result<()> {
        self.change_loras(LoraSet::open(loras)?)
    }

    /// Adds a LoRA to the active ones.
    ///
    /// # Errors
    /// Those of [`Pipeline::set_loras`].
    pub fn add_lora(&mut self, lora: impl Into<LoraUse>) -> Result<()> {
        let mut loras = LoraSet::clone(&self.loras);
        loras.add(lora.into())?;
        self.change_loras(loras)
    }

    /// Changes the scale of a LoRA, by its name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an unknown name, and those of
    /// [`Pipeline::set_loras`].
    pub fn set_lora_scale(&mut self, name: &str, scale: f64) -> Result<()> {
        let mut loras = LoraSet::clone(&self.loras);
        loras.set_scale(name, scale)?;
        self.change_loras(loras)
    }

    /// Removes a LoRA, by its name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an unknown name, and
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) if LoRAs were fused with the weights.
    pub fn remove_lora(&mut self, name: &str) -> Result<()> {
        let mut loras = LoraSet::clone(&self.loras);
        loras.remove(name)?;
        self.change_loras(loras)
    }

    fn change_loras(&mut self, loras: LoraSet) -> Result<()> {
        if self.fused {
            Err(fused_error())
        } else {
            self.put_loras(loras, false)
        }
    }

    /// Activates LoRAs; `fused` means that the transformer's weights already contain them.
    pub(crate) fn put_loras(&mut self, loras: LoraSet, fused: bool) -> Result<()> {
        let (text, dit) = (self.parts.text.in_memory(), self.parts.dit.in_memory());
        if let (Some(text), Some(dit)) = (&text, &dit) {
            loras.check_patterns(text, dit)?;
        }
        let mut prepared = text
            .as_ref()
            .map(|text| loras.prepare_text(text))
            .transpose()?
            .unwrap_or_default();
        match &dit {
            Some(dit) if !fused => prepared.push(loras.prepare_dit(dit)?),
            // A transformer not in memory gets its adapters when it is loaded; a mismatch is reported now.
            _ => drop(loras.transformer(&self.parts.config)?),
        }
        prepared.into_iter().for_each(PendingAdapters::apply);
        drop((text, dit));
        (self.loras, self.fused) = (Frozen::new(loras), fused);
        Ok(())
    }

    /// Leases the text encoders with their LoRAs.
    pub(super) fn lease_text(&self) -> Result<Lease<'_, TextEncoder>> {
        self.parts.text.lease_with(|text| {
            let prepared = self.loras.prepare_text(text)?;
            prepared.into_iter().for_each(PendingAdapters::apply);
            Ok(())
        })
    }

    /// Leases the transformer with its LoRAs.
    pub(super) fn lease_dit(&self) -> Result<Lease<'_, Dit>> {
        self.parts.dit.lease_with(|dit| {
            if !self.fused {
                self.loras.prepare_dit(dit)?.apply();
            }
            Ok(())
        })
    }
}
