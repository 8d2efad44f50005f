//! Pipelines from parts that are in memory already: given, or drawn at random.

use std::sync::Arc;

use kontext_core::{Error, Result};

use crate::checkpoint::Overrides;
use crate::defaults::check_tokens;
use crate::export::{ModelSizes, random_parts};
use crate::kernels::KernelSource;
use crate::lora::LoraSet;
use crate::pipeline::{PartSlots, Pipeline, fit};
use crate::placement::Slot;
use crate::{Fp8Products, Parts, PipelineBuilder, Placement};

impl PipelineBuilder {
    /// Assembles a pipeline from parts already on one device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the parts do not fit each other, for defaults out of range, for another
    /// device than that of the parts, for an attention that it lacks, or for an option of loading files:
    /// quantisation, products in fp8, fused LoRAs, a placement, a memory budget, paths of parts.
    pub fn assemble(&self, parts: Parts) -> Result<Pipeline> {
        let device = parts.text.t5().device();
        if let Some(other) = self.device.filter(|other| *other != device) {
            let expected = format!("that of the parts, {device:?}, or none");
            return Err(Error::invalid("device", expected, format!("{other:?}")));
        }
        parts.defaults.validate()?;
        let on_device = Self {
            device: Some(device),
            ..self.clone()
        };
        let length = match (self.max_sequence_length, parts.defaults.max_sequence_length) {
            (None, None) => check_tokens(parts.text.sequence_length())?,
            _ => self.text_tokens(&parts.defaults)?,
        };
        let parts = Parts {
            text: parts.text.max_sequence_length(length),
            ..parts
        };
        self.check_for_parts()?;
        let Parts {
            text,
            mut dit,
            mut vae,
            shift,
            defaults,
        } = parts;
        fit(&text, &vae, dit.config())?;
        let settings = on_device.settings()?;
        let config = dit.config().clone();
        let facts = on_device.model_facts(&config, shift, text.sequence_length(), defaults)?;
        let kernels = KernelSource::begin(&self.kernels, &config, device, settings.precision.built);
        if self.kernels.wanted {
            kernels.equip(&mut dit);
            kernels.equip_autoencoder(&mut vae);
        } else {
            dit.set_kernels(None);
            vae.set_kernels(None);
        }
        let parts = PartSlots {
            text: Slot::given(text),
            dit: Slot::given(dit),
            vae: Slot::given(vae),
            config,
            kernels: Arc::new(kernels),
        };
        let mut pipeline = Pipeline::new(parts, facts, settings);
        pipeline.put_loras(LoraSet::open(self.loras.iter().cloned())?, false)?;
        pipeline.check_preview_decoder()?;
        Ok(pipeline)
    }

    /// Checks that no option is set that only files can follow.
    fn check_for_parts(&self) -> Result<()> {
        let set = [
            ("quantize", self.quantize.is_some()),
            ("fp8_products", self.fp8_products != Fp8Products::default()),
            ("quantize_t5", self.quantize_t5.is_some()),
            ("fuse_loras", self.fuse_loras),
            ("placement", self.placement != Placement::Auto),
            ("memory_budget", self.memory_budget.is_some()),
            ("paths of parts", self.overrides != Overrides::default()),
        ];
        match set.into_iter().find(|(_, set)| *set) {
            None => Ok(()),
            Some((name, _)) => Err(Error::invalid(name, "none for parts that are built already", "one")),
        }
    }

    /// Creates a pipeline with random weights on the device, without any file: for timing models of the
    /// published size, and for tests. Text is tokenized letter by letter.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is not available, [`Error::Torch`] if its memory is too small.
    ///
    /// # Example
    /// ```
    /// use kontext::{Device, ModelSizes, Pipeline, Request};
    /// let pipe = Pipeline::builder().device(Device::Cpu).random(&ModelSizes::small(), 7)?;
    /// let out = pipe.run(&Request::generate("a cat").size(32, 32).steps(1).seed(1))?;
    /// assert_eq!(out.image.dimensions(), (32, 32));
    /// # Ok::<(), kontext::Error>(())
    /// ```
    pub fn random(&self, sizes: &ModelSizes, seed: u64) -> Result<Pipeline> {
        self.assemble(self.random_parts(sizes, seed)?)
    }

    /// Creates the parts of [`PipelineBuilder::random`], for timing each by itself. Of the options, device and
    /// dtype decide; [`PipelineBuilder::assemble`] follows the others.
    ///
    /// # Errors
    /// Those of [`PipelineBuilder::random`].
    pub fn random_parts(&self, sizes: &ModelSizes, seed: u64) -> Result<Parts> {
        // Before a large model is drawn.
        self.check_for_parts()?;
        drop(self.attention_backend()?);
        let (precision, device) = self.precision()?;
        random_parts(sizes, seed, device, precision.stored, precision.built)
    }
}
