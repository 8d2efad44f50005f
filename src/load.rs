//! Pipelines from the builder's options: loading from a folder, and plans before loading.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use kontext_core::{Device, Error, ModelPart, Result, Stage, buffer};
use kontext_device::{memory, openmp};
use kontext_dit::DitConfig;
use kontext_dit::names::is_block;
use kontext_formats::Quantize;
use kontext_lora::LoraDefaults;
use kontext_nn::{Offload, Weights};
use kontext_sampler::Size;
use kontext_text::T5Encoder;

use crate::checkpoint::Checkpoint;
use crate::fp8::Fp8Choice;
use crate::kernels::KernelSource;
use crate::lora::LoraSet;
use crate::memory::{Footprint, Machine, MemoryPlan};
use crate::part_files::{TextFiles, TransformerFiles, VaeFiles};
use crate::pipeline::{PartSlots, Pipeline, Precision, fit};
use crate::placement::{Arrangement, Placement, Slot};
use crate::plan::ModelFacts;
use crate::{Fp8Products, LoraUse, ModelDefaults, PipelineBuilder, Plan, Request, Warning};

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
    /// [`Error::InvalidArgument`] for an attention that the device lacks, [`Error::Device`] if the device is not
    /// available, [`Error::Memory`] and [`Error::Thread`] if the machine lacks memory or threads.
    pub fn load(&self, folder: impl AsRef<Path>) -> Result<Pipeline> {
        self.load_with(folder, |_| ())
    }

    /// Loads as [`PipelineBuilder::load`] does and reports its progress.
    ///
    /// # Errors
    /// Those of [`PipelineBuilder::load`].
    pub fn load_with(&self, folder: impl AsRef<Path>, progress: impl FnMut(LoadProgress)) -> Result<Pipeline> {
        memory::check_address_space(Stage::Load, 0)?;
        openmp::check()?;
        let model = self.open(folder.as_ref())?;
        let (_, device) = self.precision()?;
        let facts = self.facts(&model)?;
        let footprint = self.footprint(&model)?;
        let arrangement = self.chosen(&footprint, &facts, device)?;
        memory::check_address_space(Stage::Load, footprint.address_space(arrangement))?;
        let facts = facts.ignoring(self.ignored(&model, arrangement.left)?);
        let facts = facts.multiplying(self.fp8_of(&model, arrangement.left)?);
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
        let weights = weights.at_most(precision.stored).device(device);
        let fp8 = facts.fp8.any();
        let (staged, left) = (arrangement.placement == Placement::Staged, arrangement.left);
        // The four other parts count as one piece each.
        let total = 4 + (config.double_blocks + config.single_blocks) as usize;
        let kernels = Arc::new(KernelSource::begin(&self.kernels, config, device, precision.built));
        let mut tell = |part: &'static str, done: usize| progress(LoadProgress { part, done, total });
        tell("text encoders", 0);
        let text = {
            let (compute, quantize) = (precision.built, self.quantize_t5);
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
        let vae_files = VaeFiles {
            path: checkpoint.vae.clone(),
            device,
            kernels: Arc::clone(&kernels),
        };
        // Equipped after the transformer is read, which takes longer than the compiler.
        let vae = (!staged).then(|| vae_files.read()).transpose()?;
        let files = TransformerFiles {
            weights: weights.offload(left).quantized(self.quantize).fp8_products(fp8),
            config: config.clone(),
            prefetched: left == Offload::All,
            kernels: Arc::clone(&kernels),
        };
        let dit = if staged {
            Slot::new(true, move || files.open(|_| ()))?
        } else {
            let dit = files.open(|blocks| tell("transformer", 4 + blocks))?;
            Slot::kept(dit, move || files.open(|_| ()))
        };
        let vae = match vae.map(|vae| vae_files.equipped(vae)) {
            Some(vae) => Slot::kept(vae, move || vae_files.open()),
            None => Slot::new(true, move || vae_files.open())?,
        };
        if let (Some(text), Some(vae)) = (text.in_memory(), vae.in_memory()) {
            fit(&text, &vae, config)?;
        }
        let parts = PartSlots {
            text,
            dit,
            vae,
            config: config.clone(),
            kernels,
        };
        let pipeline = Pipeline::new(parts, facts, self.settings()?);
        let mut pipeline = pipeline.with_files(model.checkpoint, footprint.clone(), arrangement, self.memory_budget);
        pipeline.put_loras(loras, fused)?;
        pipeline.check_preview_decoder()?;
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
        let (Precision { built, stored, .. }, device) = self.precision()?;
        let machine = Machine { device, built, stored };
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
    /// is reported before gigabytes are read. With [`Placement::Auto`] the warnings are those of the placement that
    /// a load would choose now; for a device that this machine does not have, those of [`Placement::Resident`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request out of range or an attention that the device lacks, and those of
    /// [`PipelineBuilder::load`] if the transformer's header or configuration is missing or damaged.
    pub fn plan(&self, folder: impl AsRef<Path>, request: &Request) -> Result<Plan> {
        self.plan_of(&self.open(folder.as_ref())?, request)
    }

    fn plan_of(&self, model: &Opened, request: &Request) -> Result<Plan> {
        let facts = self.facts(model)?;
        let left = match self.placement {
            Placement::Streamed => Offload::All,
            // Only quantisation depends on the choice, which opens the headers of all parts.
            Placement::Auto if self.quantize.or(self.quantize_t5).is_some() && self.has_device() => {
                let (_, device) = self.precision()?;
                self.chosen(&self.footprint(model)?, &facts, device)?.left
            }
            Placement::Auto | Placement::Resident | Placement::Staged => Offload::None,
        };
        let ignored = self.ignored(model, left)?;
        let facts = facts.ignoring(ignored).multiplying(self.fp8_of(model, left)?);
        Plan::with_loras(request, &facts, &self.lora_defaults(request)?)
    }

    /// Returns the settings that the LoRAs of a request ask for, from the headers of their files.
    fn lora_defaults(&self, request: &Request) -> Result<Vec<LoraDefaults>> {
        let named = |name: &str| self.loras.iter().find(|lora| lora.name() == name);
        let loras: Vec<&LoraUse> = match &request.loras {
            Some(loras) => {
                let used = loras.iter().filter(|lora| lora.scale != 0.0);
                used.filter_map(|lora| named(&lora.name)).collect()
            }
            None => self.loras.iter().filter(|lora| lora.is_active()).collect(),
        };
        loras.into_iter().map(LoraUse::defaults).collect()
    }

    fn facts(&self, model: &Opened) -> Result<ModelFacts> {
        let Opened { config, defaults, .. } = model;
        let (scheduler, length) = (model.checkpoint.sampling(config)?, self.text_tokens(defaults)?);
        let facts = self.model_facts(config, scheduler, length, defaults.clone())?;
        Ok(facts.multiplying(self.fp8_of(model, Offload::None)?))
    }

    /// Returns the runs that multiply in fp8: none, if no block's weights are in fp8 where they are left in their file
    /// as `left` says.
    fn fp8_of(&self, model: &Opened, left: Offload) -> Result<Fp8Choice> {
        let choice = self.fp8_choice()?;
        let at_load = self.quantize.filter(|to| *to == Quantize::Fp8);
        let weights = model.weights.clone().offload(left).quantized(at_load);
        let any = weights.has_fp8(is_block) || weights.quantizes_any(is_block);
        Ok(if any { choice } else { Fp8Choice::default() })
    }

    /// Returns the settings that have no effect on this model, for weights that are left in their file as `left`
    /// says.
    fn ignored(&self, model: &Opened, left: Offload) -> Result<Vec<Warning>> {
        let mut ignored = Vec::new();
        // Layers with a fused LoRA are quantised in any case.
        let fused = self.fuse_loras && self.loras.iter().any(LoraUse::is_active);
        if let Some(to) = self.quantize.filter(|_| !fused) {
            let weights = model.weights.clone().offload(left).quantized(Some(to));
            if !weights.quantizes_any(is_block) {
                let part = ModelPart::Transformer;
                ignored.push(Warning::QuantizeIgnored { part, to });
            }
        }
        if let Some(to) = self.quantize_t5 {
            let weights = T5Encoder::weights(&model.checkpoint.t5)?;
            if !weights
                .offload(left)
                .quantized(Some(to))
                .quantizes_any(T5Encoder::is_block)
            {
                let part = ModelPart::T5;
                ignored.push(Warning::QuantizeIgnored { part, to });
            }
        }
        if self.fp8_products == Fp8Products::Always && !self.fp8_of(model, left)?.any() {
            ignored.push(Warning::Fp8ProductsIgnored);
        }
        if self.fuse_loras && !fused {
            ignored.push(Warning::FuseLorasIgnored);
        }
        Ok(ignored)
    }
}

/// A model with its headers read.
struct Opened {
    checkpoint: Checkpoint,
    weights: Weights,
    config: DitConfig,
    defaults: ModelDefaults,
}
