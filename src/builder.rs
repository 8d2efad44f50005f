//! Building a pipeline: options first, then the folder, or parts of one's own.

use std::path::{Path, PathBuf};

use kontext_core::{Device, Error, Kind, Result, device};
use kontext_dit::Dit;
use kontext_sampler::Shift;
use kontext_text::{ClipEncoder, T5Encoder, TextEncoder, Tokenizer};
use kontext_vae::{Autoencoder, Tiling};

use crate::checkpoint::{Checkpoint, Overrides};
use crate::lora::LoraSet;
use crate::pipeline::{Pipeline, Precision};
use crate::plan::ModelFacts;
use crate::random_model::{ModelSizes, random_parts};
use crate::{LoraUse, ModelDefaults, Plan, Request};

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
    device: Option<Device>,
    dtype: Option<Kind>,
    tiling: Option<Tiling>,
    max_sequence_length: Option<usize>,
    overrides: Overrides,
    loras: Vec<LoraUse>,
    fuse_loras: bool,
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

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loading {
    /// The part that is being read.
    pub part: &'static str,
    /// Pieces that are done, over all parts.
    pub done: usize,
    /// Pieces of all parts.
    pub total: usize,
}

impl Builder {
    /// Where to run. Default: the first CUDA device, else the CPU.
    pub fn device(self, device: Device) -> Self {
        Self { device: Some(device), ..self }
    }

    /// The dtype of the run: `Float`, `BFloat16` or `Half`. Default: bf16 on CUDA, f32 on the CPU.
    ///
    /// On the CPU, where bf16 units are rare and computing without them takes hundreds of times as
    /// long, bf16 and f16 weights are kept narrow and widened to f32 layer by layer; latents are
    /// still rounded as in a run of that dtype.
    pub fn dtype(self, dtype: Kind) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// Encodes and decodes large pictures in tiles of this size. Default: tiles of 1024 pixels
    /// above 2048x2048.
    pub fn tiling(self, tiling: Tiling) -> Self {
        Self { tiling: Some(tiling), ..self }
    }

    /// Tokens of T5. Default: what the model's `kontext.json` says, else 512; FLUX.1-schnell was trained with 256.
    pub fn max_sequence_length(self, tokens: usize) -> Self {
        Self { max_sequence_length: Some(tokens), ..self }
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
    /// in f32, and [`Pipeline::set_loras`] is refused. Default: no.
    pub fn fuse_loras(self, fuse: bool) -> Self {
        Self { fuse_loras: fuse, ..self }
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

    /// Finds and loads the parts in a folder; see [`Checkpoint`].
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Checkpoint`] and [`Error::Tokenizer`] where a part is missing or
    /// damaged, [`Error::Device`] where the device is not there.
    pub fn load(&self, folder: impl AsRef<Path>) -> Result<Pipeline> {
        self.load_with(folder, |_| ())
    }

    /// As [`Builder::load`], telling how far it has come.
    ///
    /// # Errors
    /// Those of [`Builder::load`].
    pub fn load_with(&self, folder: impl AsRef<Path>, mut progress: impl FnMut(Loading)) -> Result<Pipeline> {
        let checkpoint = Checkpoint::find_with(folder.as_ref(), &self.overrides)?;
        let defaults = ModelDefaults::of(folder.as_ref())?;
        let (precision, device) = self.precision()?;
        let compute = precision.compute;
        // Opened before anything is read, so that a wrong file is told at once.
        let (weights, config) = checkpoint.open_transformer()?;
        let loras = LoraSet::open(self.loras.iter().cloned())?;
        let adapters = loras.transformer(&config)?;
        let fused = self.fuse_loras && !loras.is_empty();
        let weights = if fused { weights.fused(adapters) } else { weights };
        let shift = checkpoint.shift(&config)?;
        // The four other parts are a piece each.
        let total = 4 + (config.double_blocks + config.single_blocks) as usize;
        let mut done = 0;
        let mut start = |part: &'static str, pieces: usize| {
            progress(Loading { part, done, total });
            done += pieces;
        };
        start("tokenizers", 1);
        let clip_tokenizer = Tokenizer::open(&checkpoint.clip_tokenizer)?;
        let t5_tokenizer = Tokenizer::open(&checkpoint.t5_tokenizer)?;
        start("CLIP", 1);
        let clip = ClipEncoder::open(&checkpoint.clip, compute, device)?;
        start("T5", 1);
        let t5 = T5Encoder::open(&checkpoint.t5, compute, device)?;
        let text = TextEncoder::new(clip, clip_tokenizer, t5, t5_tokenizer)?;
        start("VAE", 1);
        // Always in f32: it is small, and one of the conformance modes needs it so.
        let vae = Autoencoder::open(&checkpoint.vae, Kind::Float, device)?;
        let weights = weights.at_most(precision.dtype).device(device);
        let dit = Dit::new(&weights, &config, |blocks| {
            progress(Loading { part: "transformer", done: done + blocks, total });
        })?;
        weights.finish()?;
        let parts = Parts { text, dit, vae, shift, defaults };
        let mut pipeline = Pipeline::new(self.with_length(parts)?, precision, device, self.tiling, Some(checkpoint))?;
        pipeline.put_loras(loras, fused)?;
        Ok(pipeline)
    }

    /// What a run of this request would do with the model in a folder, from names and headers alone:
    /// a wrong request is told before gigabytes are read.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request out of range, and those of [`Builder::load`] where the
    /// transformer's header or configuration is missing or damaged.
    pub fn plan(&self, folder: impl AsRef<Path>, request: &Request) -> Result<Plan> {
        let checkpoint = Checkpoint::find_with(folder.as_ref(), &self.overrides)?;
        let (_, config) = checkpoint.open_transformer()?;
        let defaults = ModelDefaults::of(folder.as_ref())?;
        let length = self.max_sequence_length.or(defaults.max_sequence_length);
        let facts = ModelFacts {
            sizes: defaults.sizes(),
            shift: checkpoint.shift(&config)?,
            guidance_embed: config.guidance_embed,
            text_tokens: length.unwrap_or(TextEncoder::SEQUENCE_LENGTH) as i64,
            defaults,
        };
        Plan::new(request, &facts)
    }

    /// Makes a pipeline of parts that are already on one device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the parts do not fit each other.
    pub fn assemble(&self, parts: Parts) -> Result<Pipeline> {
        let device = parts.text.t5().device();
        let (precision, _) = Self { device: Some(device), ..self.clone() }.precision()?;
        let mut pipeline = Pipeline::new(self.with_length(parts)?, precision, device, self.tiling, None)?;
        if self.fuse_loras && !self.loras.is_empty() {
            return Err(Error::invalid("fuse_loras", "false for parts that are built already", true));
        }
        pipeline.put_loras(LoraSet::open(self.loras.iter().cloned())?, false)?;
        Ok(pipeline)
    }

    /// Makes a pipeline with random weights on the device, without any file: for timing models of
    /// the published size, and for tests. Text is read letter by letter.
    ///
    /// # Errors
    /// [`Error::Device`] where the device is not there, [`Error::Torch`] where its memory is too small.
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
        let (precision, device) = self.precision()?;
        self.assemble(random_parts(sizes, seed, device, precision.dtype, precision.compute)?)
    }

    fn with_length(&self, parts: Parts) -> Result<Parts> {
        match self.max_sequence_length.or(parts.defaults.max_sequence_length) {
            Some(0) => Err(Error::invalid("max_sequence_length", "at least 1 token", 0)),
            Some(length) => Ok(Parts { text: parts.text.max_sequence_length(length), ..parts }),
            None => Ok(parts),
        }
    }

    fn precision(&self) -> Result<(Precision, Device)> {
        let device = self.device.unwrap_or_else(device::best);
        device::available(device)?;
        let default = if device.is_cuda() { Kind::BFloat16 } else { Kind::Float };
        let dtype = self.dtype.unwrap_or(default);
        if !matches!(dtype, Kind::Float | Kind::BFloat16 | Kind::Half) {
            return Err(Error::invalid("dtype", "Float, BFloat16 or Half", format!("{dtype:?}")));
        }
        let compute = if device == Device::Cpu { Kind::Float } else { dtype };
        Ok((Precision { dtype, compute }, device))
    }
}
