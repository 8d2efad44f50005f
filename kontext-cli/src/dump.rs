//! Intermediate tensors of a run, for comparison with another program.

use std::path::Path;

use kontext::{Device, Event, Result, Tensor};

/// Tensors collected from the events of a run.
#[derive(Default)]
pub(crate) struct Dump {
    tensors: Vec<(String, Tensor)>,
}

impl Dump {
    /// Copies the tensors of an event.
    pub(crate) fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        match event {
            Event::Encoded {
                conditioning, negative, ..
            } => {
                let prefix = if *negative { "negative_" } else { "" };
                self.keep(format!("{prefix}prompt_embeds"), &conditioning.prompt_embeds)?;
                self.keep(format!("{prefix}pooled_prompt_embeds"), &conditioning.pooled)?;
            }
            Event::Reference { index: 0, latents, .. } => self.keep("context_latents".to_owned(), latents)?,
            Event::Reference { index, latents, .. } => self.keep(format!("context_latents_{index}"), latents)?,
            Event::Noise { latents } => self.keep("latents".to_owned(), latents)?,
            Event::Step {
                done, total, latents, ..
            } => {
                self.keep(format!("step_{}", done - 1), latents)?;
                if done == total {
                    self.keep("final".to_owned(), latents)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn keep(&mut self, name: String, tensor: &Tensor) -> Result<()> {
        // A copy: the run continues with the original.
        self.tensors
            .push((name, tensor.f_to_device(Device::Cpu)?.f_contiguous()?.f_detach_copy()?));
        Ok(())
    }

    /// Writes all tensors to a safetensors file.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        kontext_formats::save(path, &self.tensors, None)
    }
}
