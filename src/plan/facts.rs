//! Properties of a model that the plans of its runs depend on.

use kontext_core::{Device, Kind};
use kontext_dit::DitConfig;
use kontext_nn::AttentionKernel;
use kontext_sampler::{Shift, Size};

use crate::compute::ComputeChoice;
use crate::fp8::Fp8Choice;
use crate::threads::Computation;
use crate::{ModelDefaults, Threads, Warning};

/// Properties of the model that a plan depends on.
#[derive(Debug, Clone)]
pub(crate) struct ModelFacts {
    pub(super) config: DitConfig,
    pub(crate) sizes: Vec<Size>,
    pub(crate) shift: Shift,
    pub(crate) guidance_embed: bool,
    pub(crate) text_tokens: i64,
    pub(crate) latent_channels: i64,
    pub(crate) defaults: ModelDefaults,
    pub(super) attention: Option<AttentionKernel>,
    /// The same for runs in bf16.
    pub(super) attention_in_bf16: Option<AttentionKernel>,
    pub(crate) compute: ComputeChoice,
    pub(crate) fp8: Fp8Choice,
    pub(super) computation: Computation,
    /// Settings of the model's defaults and of the builder without effect.
    pub(crate) ignored: Vec<Warning>,
}

impl ModelFacts {
    pub(crate) fn new(config: &DitConfig, shift: Shift, text_tokens: usize, defaults: ModelDefaults) -> Self {
        let guidance = defaults.guidance.filter(|_| !config.guidance_embed);
        Self {
            config: config.clone(),
            sizes: defaults.sizes(),
            shift,
            guidance_embed: config.guidance_embed,
            text_tokens: text_tokens as i64,
            latent_channels: config.in_channels / 4,
            defaults,
            attention: None,
            attention_in_bf16: None,
            compute: ComputeChoice::all(Kind::Float),
            fp8: Fp8Choice::default(),
            computation: Computation::of(config),
            ignored: guidance
                .map(|guidance| Warning::DefaultGuidanceIgnored { guidance })
                .into_iter()
                .collect(),
        }
    }

    /// Sets the kernel of attention, in the pipeline's dtype and in bf16.
    pub(crate) fn attending(self, attention: Option<AttentionKernel>, in_bf16: Option<AttentionKernel>) -> Self {
        Self {
            attention,
            attention_in_bf16: in_bf16,
            ..self
        }
    }

    /// Sets the kinds of arithmetic. Default: f32.
    pub(crate) fn computing(self, compute: ComputeChoice) -> Self {
        Self { compute, ..self }
    }

    /// Sets the runs that multiply in fp8. Default: none.
    pub(crate) fn multiplying(self, fp8: Fp8Choice) -> Self {
        Self { fp8, ..self }
    }

    /// Sets the device that computes, and the number of threads.
    pub(crate) fn threading(mut self, device: Device, threads: Threads) -> Self {
        self.computation.on_cpu = device == Device::Cpu;
        self.computation.threads = threads;
        self
    }

    /// Adds the settings of the builder without effect.
    pub(crate) fn ignoring(mut self, ignored: Vec<Warning>) -> Self {
        self.ignored.extend(ignored);
        self
    }

    /// Returns the features of a token: the channels of a patch of 2x2 latents.
    pub(crate) fn packed_channels(&self) -> i64 {
        4 * self.latent_channels
    }
}
