//! Pipelines from the builder's options: loading from a folder, assembly from given parts, and plans before
//! loading.

use std::path::Path;

use image::RgbImage;
use kontext_core::{Device, Error, Kind, ModelPart, Result, Stage, buffer};
use kontext_device::{device, memory, threads};
use kontext_dit::{Dit, DitConfig};
use kontext_formats::Quantize;
use kontext_nn::{Offload, Weights};
use kontext_sampler::Size;
use kontext_text::{ClipEncoder, T5Encoder, TextEncoder, Tokenizer};
use kontext_vae::Autoencoder;

use crate::checkpoint::{Checkpoint, Overrides};
use crate::defaults::check_tokens;
use crate::export::{ModelSizes, random_parts};
use crate::lora::LoraSet;
use crate::memory::{Footprint, Machine, MemoryPlan};
use crate::pipeline::{PartSlots, Pipeline, Precision, fit};
use crate::placement::{Arrangement, Placement, Slot};
use crate::plan::ModelFacts;
use crate::{LoraUse, ModelDefaults, Parts, PipelineBuilder, Plan, Request, Warning};

/// Starts of the names of the transformer's blocks, in files of BFL and of diffusers.
const DIT_BLOCKS: [&str; 4] = [
    "double_blocks.",
    "single_blocks.",
    "transformer_blocks.",
    "single_transformer_blocks.",
];
/// Starts of the names of T5's blocks.
const T5_BLOCKS: [&str; 1] = ["encoder.block."];

/// Progress of loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// The part being read.
    pub part: &'static str,
    /// Finished pieces, over all parts.
    pub done: usize,
    /// Total number of pieces, over all parts.
    pub total: usize,
}

impl PipelineBuilder {
    /// Finds and loads the parts in a folder; see [`Checkpoint`].
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Checkpoint`] and [`Error::Tokenizer`] if a part is missing or damaged,
    /// [`Error::Device`] if the device is not available, [`Error::Memory`] and [`Error::Thread`] if the machine lacks
    /// memory or threads.
    pub fn load(&self, folder: impl AsRef<Path>) -> Result<Pipeline> {
        self.load_with(folder, |_| ())
    }

    /// Loads as [`PipelineBuilder::load`] does and reports its progress.
    ///
    /// # Errors
    /// Those of [`PipelineBuilder::load`].
    pub fn load_with(&self, folder: impl AsRef<Path>, progress: impl FnMut(LoadProgress)) -> Result<Pipeline> {
        memory::check_address_space(Stage::Load, 0)?;
        threads::check()?;
        let model = self.open(folder.as_ref())?;
        let (_, device) = self.precision()?;
        let facts = self.facts(&model)?;
        let footprint = self.footprint(&model)?;
        let arrangement = self.chosen(&footprint, &facts, device)?;
        memory::check_address_space(Stage::Load, footprint.address_space(arrangement))?;
        let facts = facts.ignoring(self.ignored(&model, arrangement.left)?);
        self.load_placed(model, facts, &footprint, arrangement, progress)
            .map_err(|error| {
                if !error.is_out_of_memory() {
                    return error;
                }
                memory::give_back_on(device);
                let Ok(free) = memory::free(device) else { return error };
                footprint.shortage_at_load(error, arrangement, free)
            })
    }

    fn load_placed(
        &self,
        model: Opened,
        facts: ModelFacts,
        footprint: &Footprint,
        arrangement: Arrangement,
        mut progress: impl FnMut(LoadProgress),
    ) -> Result<Pipeline> {
        let Opened { checkpoint, config, .. } = &model;
        let (precision, device) = self.precision()?;
        let loras = LoraSet::open(self.loras.iter().cloned())?;
        let adapters = loras.transformer(config)?;
        loras.check_patterns(config)?;
        let fused = self.fuse_loras && !loras.is_empty();
        let weights = model.weights.clone();
        let weights = if fused { weights.fused(adapters) } else { weights };
        let weights = weights.at_most(precision.dtype).device(device);
        let (staged, left) = (arrangement.placement == Placement::Staged, arrangement.left);
        // The four other parts count as one piece each.
        let total = 4 + (config.double_blocks + config.single_blocks) as usize;
        let mut tell = |part: &'static str, done: usize| progress(LoadProgress { part, done, total });
        tell("text encoders", 0);
        let text = {
            let (compute, quantize) = (precision.compute, self.quantize_t5);
            let length = facts.text_tokens as usize;
            let files = TextFiles {
                checkpoint: checkpoint.clone(),
                length,
                compute,
                device,
                left,
                quantize,
            };
            Slot::new(staged, move || files.open())?
        };
        tell("VAE", 3);
        // Always f32: the VAE is small, and one of the conformance modes requires it.
        let vae = {
            let path = checkpoint.vae.clone();
            Slot::new(staged, move || Autoencoder::open(&path, Kind::Float, device))?
        };
        let files = TransformerFiles {
            weights: weights.offload(left).quantized(self.quantize),
            config: config.clone(),
            prefetched: left == Offload::All,
        };
        let dit = if staged {
            Slot::new(true, move || files.open(|_| ()))?
        } else {
            let dit = files.open(|blocks| tell("transformer", 4 + blocks))?;
            Slot::kept(dit, move || files.open(|_| ()))
        };
        if let (Some(text), Some(vae)) = (text.in_memory(), vae.in_memory()) {
            fit(&text, &vae, config)?;
        }
        let parts = PartSlots {
            text,
            dit,
            vae,
            config: config.clone(),
        };
        let pipeline = Pipeline::new(parts, facts, precision, device, self.tiling);
        let mut pipeline = pipeline.with_files(model.checkpoint, footprint.clone(), arrangement, self.memory_budget);
        pipeline.put_loras(loras, fused)?;
        Ok(pipeline)
    }

    /// Returns the requested placement, or with [`Placement::Auto`] the first that fits an edit of a square
    /// image.
    fn chosen(&self, footprint: &Footprint, facts: &ModelFacts, device: Device) -> Result<Arrangement> {
        let candidates = self.placement.arrangements(device);
        // Not every device reports its free memory.
        let free = if candidates.len() > 1 {
            memory::free(device).ok()
        } else {
            None
        };
        let available = free.into_iter().chain(self.memory_budget).min();
        let square = facts.sizes.iter().min_by_key(|size| size.width.abs_diff(size.height));
        let square = square.copied().unwrap_or(Size::new(1024, 1024));
        let pixels = buffer::filled(0, 3 * square.area() as usize, "a plan of the memory")?;
        let none = || Error::bug("an image with missing pixels");
        let image = RgbImage::from_raw(square.width, square.height, pixels).ok_or_else(none)?;
        let plan = Plan::new(&Request::edit(image, ""), facts)?;
        let chosen = match available {
            Some(available) => footprint.first_that_fits(&plan, &candidates, available),
            None => candidates.first().copied(),
        };
        chosen.ok_or_else(|| Error::bug(format!("placement `{}` without an arrangement", self.placement)))
    }

    /// Finds the parts in a folder, with those that the builder names instead of the folder's; reads only
    /// names and headers.
    ///
    /// # Errors
    /// Those of [`Checkpoint::find`].
    pub fn checkpoint(&self, folder: impl AsRef<Path>) -> Result<Checkpoint> {
        Checkpoint::find_with(folder.as_ref(), &self.overrides)
    }

    /// Estimates the memory that a run of this request takes on the device, for each placement (or the
    /// requested one), from headers only.
    ///
    /// # Errors
    /// Those of [`PipelineBuilder::plan`], and [`Error::Device`] if the device is not available.
    pub fn memory(&self, folder: impl AsRef<Path>, request: &Request) -> Result<Vec<MemoryPlan>> {
        let model = self.open(folder.as_ref())?;
        let footprint = self.footprint(&model)?;
        let plan = self.plan_of(&model, request)?;
        let (_, device) = self.precision()?;
        let arrangements = self.placement.arrangements(device).into_iter();
        Ok(arrangements
            .map(|arrangement| footprint.plan(&plan, arrangement))
            .collect())
    }

    fn footprint(&self, model: &Opened) -> Result<Footprint> {
        let (Precision { dtype, compute }, device) = self.precision()?;
        let machine = Machine { device, dtype, compute };
        Footprint::of(
            &model.checkpoint,
            &model.weights,
            &model.config,
            machine,
            self.quantize,
            self.quantize_t5,
            self.tiling,
        )
    }

    /// Finds the parts and reads their headers, so that a wrong file is reported before anything large is
    /// read.
    fn open(&self, folder: &Path) -> Result<Opened> {
        let checkpoint = self.checkpoint(folder)?;
        let (weights, config) = checkpoint.open_transformer()?;
        Ok(Opened {
            defaults: ModelDefaults::of(&checkpoint.folder)?,
            checkpoint,
            weights,
            config,
        })
    }

    /// Plans a run of this request with the model in a folder, from names and headers only: a wrong request
    /// is reported before gigabytes are read.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request out of range, and those of [`PipelineBuilder::load`] if the
    /// transformer's header or configuration is missing or damaged.
    pub fn plan(&self, folder: impl AsRef<Path>, request: &Request) -> Result<Plan> {
        self.plan_of(&self.open(folder.as_ref())?, request)
    }

    fn plan_of(&self, model: &Opened, request: &Request) -> Result<Plan> {
        let left = match self.placement {
            Placement::Streamed => Offload::All,
            Placement::Auto | Placement::Resident | Placement::Staged => Offload::None,
        };
        let ignored = self.ignored(model, left)?;
        Plan::new(request, &self.facts(model)?.ignoring(ignored))
    }

    fn facts(&self, model: &Opened) -> Result<ModelFacts> {
        let Opened { config, defaults, .. } = model;
        let (shift, length) = (model.checkpoint.shift(config)?, self.text_tokens(defaults)?);
        Ok(ModelFacts::new(config, shift, length, defaults.clone()))
    }

    /// Returns the settings that have no effect on this model, for weights that are left in their file as `left`
    /// says.
    fn ignored(&self, model: &Opened, left: Offload) -> Result<Vec<Warning>> {
        let mut ignored = Vec::new();
        if let Some(to) = self.quantize {
            let weights = model.weights.clone().offload(left).quantized(Some(to));
            if !weights.quantizes_any(&DIT_BLOCKS) {
                let part = ModelPart::Transformer;
                ignored.push(Warning::QuantizeIgnored { part, to });
            }
        }
        if let Some(to) = self.quantize_t5 {
            let weights = T5Encoder::weights(&model.checkpoint.t5)?;
            if !weights.offload(left).quantized(Some(to)).quantizes_any(&T5_BLOCKS) {
                let part = ModelPart::T5;
                ignored.push(Warning::QuantizeIgnored { part, to });
            }
        }
        if self.fuse_loras && !self.loras.iter().any(LoraUse::is_active) {
            ignored.push(Warning::FuseLorasIgnored);
        }
        Ok(ignored)
    }

    /// Assembles a pipeline from parts already on one device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the parts do not fit each other, for defaults out of range, for another
    /// device than that of the parts, or for an option of loading files: quantisation, fused LoRAs, a placement,
    /// a memory budget, paths of parts.
    pub fn assemble(&self, parts: Parts) -> Result<Pipeline> {
        let device = parts.text.t5().device();
        if let Some(other) = self.device.filter(|other| *other != device) {
            let expected = format!("that of the parts, {device:?}, or none");
            return Err(Error::invalid("device", expected, format!("{other:?}")));
        }
        parts.defaults.validate()?;
        let (precision, _) = Self {
            device: Some(device),
            ..self.clone()
        }
        .precision()?;
        let length = match (self.max_sequence_length, parts.defaults.max_sequence_length) {
            (None, None) => check_tokens(parts.text.sequence_length())?,
            _ => self.text_tokens(&parts.defaults)?,
        };
        let parts = Parts {
            text: parts.text.max_sequence_length(length),
            ..parts
        };
        self.check_for_parts()?;
        let mut pipeline = Pipeline::of(parts, precision, device, self.tiling)?;
        pipeline.put_loras(LoraSet::open(self.loras.iter().cloned())?, false)?;
        Ok(pipeline)
    }

    /// Checks that no option is set that only files can follow.
    fn check_for_parts(&self) -> Result<()> {
        let set = [
            ("quantize", self.quantize.is_some()),
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
        let (precision, device) = self.precision()?;
        random_parts(sizes, seed, device, precision.dtype, precision.compute)
    }

    /// Returns the number of T5 tokens: the builder's, else the model's default, else that of FLUX.1's
    /// training.
    fn text_tokens(&self, defaults: &ModelDefaults) -> Result<usize> {
        let length = self.max_sequence_length.or(defaults.max_sequence_length);
        check_tokens(length.unwrap_or(TextEncoder::SEQUENCE_LENGTH))
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

/// A model with its headers read.
struct Opened {
    checkpoint: Checkpoint,
    weights: Weights,
    config: DitConfig,
    defaults: ModelDefaults,
}

/// The text encoders' files and their loading options.
struct TextFiles {
    checkpoint: Checkpoint,
    length: usize,
    compute: Kind,
    device: Device,
    left: Offload,
    quantize: Option<Quantize>,
}

impl TextFiles {
    fn open(&self) -> Result<TextEncoder> {
        let Self {
            checkpoint,
            compute,
            device,
            ..
        } = self;
        let clip_tokenizer = Tokenizer::open(&checkpoint.clip_tokenizer)?;
        let t5_tokenizer = Tokenizer::open(&checkpoint.t5_tokenizer)?;
        let clip = ClipEncoder::open(&checkpoint.clip, *compute, *device)?;
        let t5 = T5Encoder::weights(&checkpoint.t5)?.at_most(*compute).device(*device);
        let t5 = t5.offload(self.left).quantized(self.quantize);
        let t5 = T5Encoder::from_weights(&t5, &checkpoint.t5, *compute)?;
        Ok(TextEncoder::new(clip, clip_tokenizer, t5, t5_tokenizer)?.max_sequence_length(self.length))
    }
}

/// The transformer's weights and their loading options.
struct TransformerFiles {
    weights: Weights,
    config: DitConfig,
    prefetched: bool,
}

impl TransformerFiles {
    fn open(&self, progress: impl FnMut(usize)) -> Result<Dit> {
        let weights = self.weights.clone();
        // A prefetcher lives as long as the transformer that it was made for.
        let weights = if self.prefetched { weights.prefetched() } else { weights };
        let dit = Dit::new(&weights, &self.config, progress)?;
        weights.finish()?;
        memory::give_back();
        Ok(dit)
    }
}
