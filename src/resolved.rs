//! Values of a pipeline's options, with the defaults of the model and the machine.

use kontext_core::{Device, Error, Kind, Result};
use kontext_device::{cuda, device, tf32};
use kontext_dit::DitConfig;
use kontext_nn::AttentionBackend;
use kontext_sampler::SchedulerConfig;
use kontext_text::TextEncoder;

use crate::defaults::check_tokens;
use crate::fp8::{self, Fp8Choice};
use crate::pipeline::{Precision, Settings};
use crate::plan::ModelFacts;
use crate::{ModelDefaults, PipelineBuilder};

impl PipelineBuilder {
    /// Returns the number of T5 tokens: the builder's, else the model's default, else that of FLUX.1's
    /// training.
    pub(crate) fn text_tokens(&self, defaults: &ModelDefaults) -> Result<usize> {
        let length = self.max_sequence_length.or(defaults.max_sequence_length);
        check_tokens(length.unwrap_or(TextEncoder::SEQUENCE_LENGTH))
    }

    /// Returns `true` if this machine has the device.
    pub(crate) fn has_device(&self) -> bool {
        self.device.is_none_or(|device| device::available(device).is_ok())
    }

    /// Returns the settings of a pipeline's runs, and makes f32 mean f32 on a CUDA device.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let (precision, device) = self.precision()?;
        if device.is_cuda() {
            let _ = tf32::off_in_convolutions();
        }
        Ok(Settings {
            precision,
            device,
            tiling: self.tiling,
            attention: self.attention_backend()?,
            encoding_cache: self.encoding_cache,
            preview_decoder: self.preview_decoder.clone(),
        })
    }

    /// Returns the facts about a model that its plans need.
    pub(crate) fn model_facts(
        &self,
        config: &DitConfig,
        scheduler: impl Into<SchedulerConfig>,
        text_tokens: usize,
        defaults: ModelDefaults,
    ) -> Result<ModelFacts> {
        self.threads.validate()?;
        let device = self.device.unwrap_or_else(device::best);
        let facts = ModelFacts::new(config, scheduler, text_tokens, defaults)
            .computing(self.compute_choice(config)?)
            .threading(device, self.threads);
        if !self.has_device() {
            return Ok(facts.attending(self.attention.kernel(), self.attention.kernel()));
        }
        let (backend, heads, width) = (self.attention_backend()?, config.heads, config.head_dim);
        let in_bf16 = backend.kernel_in(Kind::BFloat16, heads, width)?;
        Ok(facts.attending(Some(backend.kernel(heads, width)?), Some(in_bf16)))
    }

    /// Opens the kernel of attention.
    pub(crate) fn attention_backend(&self) -> Result<AttentionBackend> {
        let (Precision { built, .. }, device) = self.precision()?;
        AttentionBackend::open(&self.attention, device, built)
    }

    /// Returns the runs that multiply fp8 weights in fp8, if there are some.
    pub(crate) fn fp8_choice(&self) -> Result<Fp8Choice> {
        let device = self.device.unwrap_or_else(device::best);
        // One that this machine does not have is refused at load.
        let here = self.has_device();
        let in_hardware = match device {
            Device::Cuda(index) if here => cuda::has_fp8(index)?,
            _ => false,
        };
        fp8::choose(self.fp8_products, device, self.dtype_on(device)?, here, in_hardware)
    }

    pub(crate) fn precision(&self) -> Result<(Precision, Device)> {
        let device = self.device.unwrap_or_else(device::best);
        device::available(device)?;
        let dtype = self.dtype_on(device)?;
        let (built, stored) = match (device, self.compute) {
            (Device::Cpu, Some(Kind::BFloat16)) => (Kind::Float, Kind::BFloat16),
            (Device::Cpu, _) => (Kind::Float, dtype),
            _ => (dtype, dtype),
        };
        Ok((Precision { dtype, built, stored }, device))
    }

    /// Returns the dtype that runs follow on a device.
    pub(crate) fn dtype_on(&self, device: Device) -> Result<Kind> {
        let default = if device.is_cuda() { Kind::BFloat16 } else { Kind::Float };
        let dtype = self.dtype.unwrap_or(default);
        if !matches!(dtype, Kind::Float | Kind::BFloat16 | Kind::Half) {
            return Err(Error::invalid("dtype", "Float, BFloat16 or Half", format!("{dtype:?}")));
        }
        Ok(dtype)
    }
}
