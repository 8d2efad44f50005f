//! The options of a pipeline; `load` acts on them.

use std::path::PathBuf;

use kontext_core::{Device, Kind};
use kontext_dit::Dit;
use kontext_formats::Quantize;
use kontext_nn::Attention;
use kontext_sampler::Shift;
use kontext_text::TextEncoder;
use kontext_vae::{Autoencoder, Tiling};

use crate::checkpoint::Overrides;
use crate::kernels::KernelOptions;
use crate::{Fp8Products, LoraUse, ModelDefaults, Placement, Threads};

/// Options of a pipeline.
///
/// # Example
/// ```no_run
/// use kontext::{Device, Kind, Pipeline};
/// let pipe = Pipeline::builder().device(Device::Cpu).dtype(Kind::Float).load("FLUX.1-Kontext-dev")?;
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct PipelineBuilder {
    pub(crate) device: Option<Device>,
    pub(crate) dtype: Option<Kind>,
    pub(crate) compute: Option<Kind>,
    pub(crate) tiling: Option<Tiling>,
    pub(crate) max_sequence_length: Option<usize>,
    pub(crate) overrides: Overrides,
    pub(crate) loras: Vec<LoraUse>,
    pub(crate) fuse_loras: bool,
    pub(crate) placement: Placement,
    pub(crate) memory_budget: Option<u64>,
    pub(crate) quantize: Option<Quantize>,
    pub(crate) quantize_t5: Option<Quantize>,
    pub(crate) fp8_products: Fp8Products,
    pub(crate) encoding_cache: Option<u64>,
    pub(crate) attention: Attention,
    pub(crate) threads: Threads,
    pub(crate) kernels: KernelOptions,
    pub(crate) preview_decoder: Option<PathBuf>,
}

/// The parts of a pipeline, for callers who build or load them themselves.
#[derive(Debug)]
pub struct Parts {
    /// Text encoders and tokenizers.
    pub text: TextEncoder,
    /// The transformer.
    pub dit: Dit,
    /// The autoencoder.
    pub vae: Autoencoder,
    /// Shift of the sigmas.
    pub shift: Shift,
    /// The model's defaults, used if a request sets nothing.
    pub defaults: ModelDefaults,
}

impl PipelineBuilder {
    /// Sets the device. Default: the first CUDA device, else the CPU.
    pub fn device(self, device: Device) -> Self {
        Self {
            device: Some(device),
            ..self
        }
    }

    /// Sets the dtype of the run: `Float`, `BFloat16` or `Half`. Default: bf16 on CUDA, f32 on the CPU.
    ///
    /// A GPU computes in it. On the CPU it is that of latents, and the widest of the transformer's weights; the
    /// arithmetic is set by [`PipelineBuilder::compute`]. With `Float` or `Half` here and none there it is f32.
    pub fn dtype(self, dtype: Kind) -> Self {
        Self {
            dtype: Some(dtype),
            ..self
        }
    }

    /// Sets the kind of arithmetic on a CPU, `Float` or `BFloat16`; on another device it has to be the dtype.
    /// Default: the faster one for a large model, f32 for others.
    ///
    /// A CPU without units for bf16 takes hundreds of times as long in it as in f32. On one with them both
    /// are measured, once a process, and bf16 is taken for the matrix products of a transformer of at least
    /// 10^9 parameters and for T5, or for the autoencoder's convolutions, if it is at least 1.3 times as
    /// fast. Smaller models, runs in the conventions of another program, and runs with the dtype `Float`
    /// compute in f32. [`Plan::compute`] has the choice; as it follows from a measurement, set a kind where
    /// results must be reproduced to the byte.
    ///
    /// Weights in other dtypes are converted layer by layer for each multiplication; with `BFloat16` here,
    /// wider ones of the transformer are narrowed at load. Softmax, norms and rotary positions are computed
    /// in f32 in either kind.
    ///
    /// [`Plan::compute`]: crate::Plan::compute
    pub fn compute(self, kind: Kind) -> Self {
        Self {
            compute: Some(kind),
            ..self
        }
    }

    /// Encodes and decodes large images in tiles of this size. Default: tiles of 1024 pixels above 2048x2048.
    pub fn tiling(self, tiling: Tiling) -> Self {
        Self {
            tiling: Some(tiling),
            ..self
        }
    }

    /// Sets the number of T5 tokens. Default: the value in the model's `kontext.json`, else 512;
    /// FLUX.1-schnell was trained with 256. At most
    /// [`TextEncoder::MOST_TOKENS`](kontext_text::TextEncoder::MOST_TOKENS).
    pub fn max_sequence_length(self, tokens: usize) -> Self {
        Self {
            max_sequence_length: Some(tokens),
            ..self
        }
    }

    /// Adds a LoRA at a scale (1 as trained); several add up. See [`Lora`](crate::Lora) for the file formats.
    pub fn lora(self, path: impl Into<PathBuf>, scale: f64) -> Self {
        self.use_lora(LoraUse::new(path).scale(scale))
    }

    /// Adds a LoRA with all its options.
    pub fn use_lora(mut self, lora: impl Into<LoraUse>) -> Self {
        self.loras.push(lora.into());
        self
    }

    /// Fuses LoRAs with the transformer's weights at load, so that a step takes no longer than without them.
    /// Default: false. Without LoRAs at a scale other than 0 it has no effect, and each plan warns of that.
    ///
    /// A run in bf16 rounds the added values, one in f32 keeps the changed weights in f32, and
    /// [`Pipeline::set_loras`](crate::Pipeline::set_loras) is refused, so that a LoRA at scale 0 stays
    /// without effect. Layers quantised in their file are dequantised, unless they are quantised again
    /// ([`PipelineBuilder::quantize`]).
    pub fn fuse_loras(self, fuse: bool) -> Self {
        Self {
            fuse_loras: fuse,
            ..self
        }
    }

    /// Sets when the parts are in memory. Default: [`Placement::Auto`].
    pub fn placement(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// Sets the most bytes of device memory that the model's weights and a run's activations may take.
    /// Default: all that is free.
    ///
    /// [`Placement::Auto`] chooses for the smaller of the budget and the free memory, and a run whose estimate
    /// ([`Pipeline::memory`](crate::Pipeline::memory)) exceeds the budget is refused with
    /// [`Error::Memory`](crate::Error::Memory) before any work. Runs on several threads are checked one by one.
    /// Refused for pipelines assembled from given parts.
    pub fn memory_budget(self, bytes: u64) -> Self {
        Self {
            memory_budget: Some(bytes),
            ..self
        }
    }

    /// Sets the capacity in bytes of the pipeline's LRU cache of encoded prompts and reference images, shared by its
    /// runs and sessions; 0 disables it. Default: 256 MiB.
    ///
    /// A run whose prompts and images are in the cache needs no encoder, and a staged pipeline loads none for it;
    /// its bytes are the same. Half of the capacity is for prompts (4 MB each in bf16 with the published model,
    /// in the device's memory), half for images (for a megapixel 3 MB of pixels in the host's memory, and 1 MB of
    /// latents on the device). [`Pipeline::unload`](crate::Pipeline::unload) empties it, and so does a run that would
    /// not fit into the memory next to it; plans of the memory leave it out.
    pub fn encoding_cache(self, bytes: u64) -> Self {
        Self {
            encoding_cache: Some(bytes),
            ..self
        }
    }

    /// Quantises the weights of the transformer's blocks at load, one layer after the other, unless the file
    /// holds them quantised or they are streamed from it; if that leaves none, each plan warns of it. Default:
    /// weights are kept as stored.
    ///
    /// In [`Quantize::Fp8`] each row has a scale, cards with fp8 multiply in it
    /// ([`PipelineBuilder::fp8_products`]), and the modulation is left as it is.
    pub fn quantize(self, to: Quantize) -> Self {
        Self {
            quantize: Some(to),
            ..self
        }
    }

    /// Sets if transformer and autoencoder compute by kernels of this library where they can: on CUDA devices from
    /// compute capability 8.0 on, in bf16, in the conventions of this library. Default: `true`.
    ///
    /// They are compiled by NVRTC while the weights load. If that fails, libtorch's operations remain, whose results
    /// differ within the roundings of bf16 ([`Arithmetic`](kontext_dit::Arithmetic)), and
    /// [`Event::NoKernels`](crate::Event::NoKernels) has the reason.
    pub fn kernels(mut self, wanted: bool) -> Self {
        self.kernels.wanted = wanted;
        self
    }

    /// Sets the folder for compiled kernels, made if it does not exist. Default: they are compiled in each process,
    /// which takes half a second of one CPU.
    pub fn kernel_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.kernels.cache = Some(folder.into());
        self
    }

    /// Quantises T5 as [`PipelineBuilder::quantize`] does the transformer.
    pub fn quantize_t5(self, to: Quantize) -> Self {
        Self {
            quantize_t5: Some(to),
            ..self
        }
    }

    /// Sets the way in which fp8 weights of the transformer's blocks are multiplied. Default:
    /// [`Fp8Products::Automatic`]. [`Plan::fp8`](crate::Plan::fp8) reports it. [`Fp8Products::Always`] is refused where the
    /// device or the dtype does not have it, and each plan warns of it if no weights are in fp8 (by
    /// [`PipelineBuilder::quantize`] or in their file).
    pub fn fp8_products(self, fp8_products: Fp8Products) -> Self {
        Self { fp8_products, ..self }
    }

    /// Sets the kernel of the transformer's attention. Default: [`Attention::Automatic`]. One that the device or the
    /// dtype lacks is refused; [`Plan::attention`](crate::Plan::attention) reports the kernel of a run.
    ///
    /// # Example
    /// ```
    /// use kontext::{Attention, Device, ModelSizes, Pipeline};
    /// let cpu = Pipeline::builder().device(Device::Cpu);
    /// let refused = cpu.attention(Attention::CuDnn).random(&ModelSizes::small(), 7).unwrap_err();
    /// assert_eq!(refused.to_string(), "invalid attention: expected auto, flash or math on a CPU, got cudnn");
    /// ```
    pub fn attention(self, attention: Attention) -> Self {
        Self { attention, ..self }
    }

    /// Sets the number of threads with which a run computes. Default: [`Threads::Automatic`].
    pub fn threads(self, threads: Threads) -> Self {
        Self { threads, ..self }
    }

    /// Sets the tiny autoencoder that decodes previews ([`PreviewMethod::Tiny`](crate::PreviewMethod::Tiny)): a folder of
    /// diffusers, or a safetensors file, such as TAEF1 for the latents of FLUX.1. Default: the folder `preview_decoder` of
    /// the model's, if there is one. One of another kind, or of other latent channels than the model's, is refused.
    pub fn preview_decoder(self, path: impl Into<PathBuf>) -> Self {
        Self {
            preview_decoder: Some(path.into()),
            ..self
        }
    }

    /// Takes the transformer from this folder or file.
    pub fn transformer(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.transformer = Some(path.into());
        self
    }

    /// Takes the autoencoder from this folder or file.
    pub fn vae(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.vae = Some(path.into());
        self
    }

    /// Takes CLIP's text model from this folder or file.
    pub fn clip(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.clip = Some(path.into());
        self
    }

    /// Takes T5's encoder from this folder or file.
    pub fn t5(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.t5 = Some(path.into());
        self
    }

    /// Takes CLIP's tokenizer from this folder or file.
    pub fn clip_tokenizer(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.clip_tokenizer = Some(path.into());
        self
    }

    /// Takes T5's tokenizer from this folder or file.
    pub fn t5_tokenizer(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.t5_tokenizer = Some(path.into());
        self
    }
}
