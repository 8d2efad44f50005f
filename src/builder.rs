//! The options of a pipeline. What is done with them stands in `load`.

use std::path::PathBuf;

use kontext_core::formats::Quantize;
use kontext_core::{Device, Kind};
use kontext_dit::Dit;
use kontext_sampler::Shift;
use kontext_text::TextEncoder;
use kontext_vae::{Autoencoder, Tiling};

use crate::checkpoint::Overrides;
use crate::{LoraUse, ModelDefaults, Placement};

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
pub struct Builder {
    pub(crate) device: Option<Device>,
    pub(crate) dtype: Option<Kind>,
    pub(crate) tiling: Option<Tiling>,
    pub(crate) max_sequence_length: Option<usize>,
    pub(crate) overrides: Overrides,
    pub(crate) loras: Vec<LoraUse>,
    pub(crate) fuse_loras: bool,
    pub(crate) placement: Placement,
    pub(crate) quantize: Option<Quantize>,
    pub(crate) quantize_t5: Option<Quantize>,
}

/// The parts of a pipeline, for those who build or load them in their own way.
#[derive(Debug)]
pub struct Parts {
    /// Text encoders and tokenizers.
    pub text: TextEncoder,
    /// The transformer.
    pub dit: Dit,
    /// The autoencoder.
    pub vae: Autoencoder,
    /// How sigmas are shifted.
    pub shift: Shift,
    /// What the model prefers where a request does not say.
    pub defaults: ModelDefaults,
}

impl Builder {
    /// Where to run. Default: the first CUDA device, else the CPU.
    pub fn device(self, device: Device) -> Self {
        Self {
            device: Some(device),
            ..self
        }
    }

    /// The dtype of the run: `Float`, `BFloat16` or `Half`. Default: bf16 on CUDA, f32 on the CPU.
    ///
    /// On the CPU, where bf16 units are rare and computing without them takes hundreds of times as
    /// long, bf16 and f16 weights are kept narrow and widened to f32 layer by layer; latents are
    /// still rounded as in a run of that dtype.
    pub fn dtype(self, dtype: Kind) -> Self {
        Self {
            dtype: Some(dtype),
            ..self
        }
    }

    /// Encodes and decodes large pictures in tiles of this size. Default: tiles of 1024 pixels
    /// above 2048x2048.
    pub fn tiling(self, tiling: Tiling) -> Self {
        Self {
            tiling: Some(tiling),
            ..self
        }
    }

    /// Tokens of T5. Default: what the model's `kontext.json` says, else 512; FLUX.1-schnell was trained with 256.
    pub fn max_sequence_length(self, tokens: usize) -> Self {
        Self {
            max_sequence_length: Some(tokens),
            ..self
        }
    }

    /// Adds a LoRA at a strength (1 as it was trained); several add up. See [`Lora`](crate::Lora) for the files.
    pub fn lora(self, path: impl Into<PathBuf>, strength: f64) -> Self {
        self.use_lora(LoraUse::new(path).scale(strength))
    }

    /// Adds a LoRA with all that can be said of it.
    pub fn use_lora(mut self, lora: impl Into<LoraUse>) -> Self {
        self.loras.push(lora.into());
        self
    }

    /// Whether LoRAs are added to the transformer's weights as they are loaded, so that a step takes no
    /// longer than without them; a run in bf16 rounds what is added, one in f32 keeps the changed weights
    /// in f32, and [`Pipeline::set_loras`](crate::Pipeline::set_loras) is refused. Layers that are
    /// packed in their file become wide, unless they are packed again ([`Builder::quantize`]). Default: no.
    pub fn fuse_loras(self, fuse: bool) -> Self {
        Self {
            fuse_loras: fuse,
            ..self
        }
    }

    /// When the parts are in memory. Default: [`Placement::Auto`].
    pub fn placement(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// Packs the weights of the transformer's blocks as they are loaded, one layer after the other, if they are not
    /// packed in the file. Default: kept as they are stored.
    pub fn quantize(self, to: Quantize) -> Self {
        Self {
            quantize: Some(to),
            ..self
        }
    }

    /// As [`Builder::quantize`], for T5.
    pub fn quantize_t5(self, to: Quantize) -> Self {
        Self {
            quantize_t5: Some(to),
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
