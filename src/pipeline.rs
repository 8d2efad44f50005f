//! The story of one run: plan, text, references, noise, sampling, pictures.

use std::ops::ControlFlow;
use std::path::Path;

use kontext_core::nn::Prepared;
use kontext_core::{Conditioning, Device, Error, Kind, Result, Tensor, Tokens, Weights, array, noise};
use kontext_dit::{Dit, DitConfig, Run, RunInput};
use kontext_sampler::ids::{Origin, grid_ids};
use kontext_sampler::{CfgMode, add_noise, guidance, integrate, pack, unpack};
use kontext_text::TextEncoder;
use kontext_vae::{Autoencoder, Tiling};

use crate::encode::{Codec, reference_pictures};
use crate::frozen::Frozen;
use crate::lora::{ActiveLora, LoraSet, LoraUse, fused_error};
use crate::memory::{Footprint, available_memory};
use crate::placement::{Lease, Slot};
use crate::plan::ModelFacts;
use crate::{Builder, Checkpoint, Event, MemoryPlan, Output, Parts, Placement, Plan, Request};

/// A loaded model that edits and generates pictures.
///
/// It is `Send` and `Sync`, and a run changes nothing in it: any number of threads may run requests
/// on one pipeline, and each gets the bytes that it would have got alone.
///
/// # Example
/// ```no_run
/// use kontext::{Pipeline, Request};
/// let pipe = Pipeline::load("FLUX.1-Kontext-dev")?;
/// let cup = kontext::open("cup.png")?;
/// let out = pipe.run(&Request::edit(&cup, "replace the logo with the word 'Rust'").seed(7))?;
/// out.save("cup-rust.png")?;
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug)]
pub struct Pipeline {
    parts: PartSlots,
    facts: ModelFacts,
    precision: Precision,
    device: Device,
    tiling: Option<Tiling>,
    files: Option<Files>,
    loras: Frozen<LoraSet>,
    fused: bool,
}

/// Where a pipeline's parts come from, and what they take.
#[derive(Debug)]
struct Files {
    checkpoint: Checkpoint,
    footprint: Footprint,
    placement: Placement,
}

/// The parts, in memory or not.
#[derive(Debug)]
pub(crate) struct PartSlots {
    pub(crate) text: Slot<TextEncoder>,
    pub(crate) dit: Slot<Dit>,
    pub(crate) vae: Slot<Autoencoder>,
    pub(crate) config: DitConfig,
}

/// The dtype that a run follows, and the one that it computes in (they differ on the CPU).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Precision {
    pub(crate) dtype: Kind,
    pub(crate) compute: Kind,
}

/// The callback of a run.
type Observer<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

impl Pipeline {
    /// Loads a model with the default options; see [`Builder`].
    ///
    /// # Errors
    /// Those of [`Builder::load`].
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        Builder::default().load(folder)
    }

    /// Options of a pipeline, by default all as [`Pipeline::load`] has them.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A pipeline of parts that are in memory.
    pub(crate) fn of(parts: Parts, precision: Precision, device: Device, tiling: Option<Tiling>) -> Result<Self> {
        let Parts { text, dit, vae, shift, defaults } = parts;
        fit(&text, &vae, dit.config())?;
        let facts = ModelFacts::new(dit.config(), shift, text.sequence_length(), defaults);
        let config = dit.config().clone();
        let slots = PartSlots { text: Slot::held(text), dit: Slot::held(dit), vae: Slot::held(vae), config };
        Ok(Self::new(slots, facts, precision, device, tiling))
    }

    pub(crate) fn new(
        parts: PartSlots,
        facts: ModelFacts,
        precision: Precision,
        device: Device,
        tiling: Option<Tiling>,
    ) -> Self {
        let loras = Frozen::new(LoraSet::default());
        Self { parts, facts, precision, device, tiling, files: None, loras, fused: false }
    }

    /// The same, with its parts taken from these files.
    pub(crate) fn from_files(self, checkpoint: Checkpoint, footprint: Footprint, placement: Placement) -> Self {
        Self { files: Some(Files { checkpoint, footprint, placement }), ..self }
    }

    /// Where the parts were found; `None` for a pipeline of one's own parts.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.files.as_ref().map(|files| &files.checkpoint)
    }

    /// When its parts are in memory; a pipeline of one's own parts is resident.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.files.as_ref().map_or(Placement::Resident, |files| files.placement)
    }

    /// How much memory a run of this request takes on a CPU; `None` for a pipeline of one's own parts.
    ///
    /// # Errors
    /// Those of [`Pipeline::plan`].
    pub fn memory(&self, request: &Request) -> Result<Option<MemoryPlan>> {
        let plan = self.plan(request)?;
        Ok(self.files.as_ref().map(|files| files.footprint.plan(&plan, files.placement)))
    }

    /// The device that the model is on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// The dtype that runs follow.
    #[must_use]
    pub fn dtype(&self) -> Kind {
        self.precision.dtype
    }

    /// The LoRAs, in their order.
    pub fn loras(&self) -> impl Iterator<Item = &ActiveLora> {
        self.loras.iter()
    }

    /// Puts these LoRAs in the place of all that there are, without reading the model again. On an error
    /// all stays as it was.
    ///
    /// # Errors
    /// Those of [`Lora::open`](crate::Lora::open) and [`Lora::adapters`](crate::Lora::adapters),
    /// [`Error::InvalidArgument`] for a strength that is no number or a name that is there twice, and
    /// [`Error::Checkpoint`] where LoRAs were fused with the weights.
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

    /// Adds a LoRA to those that there are.
    ///
    /// # Errors
    /// Those of [`Pipeline::set_loras`].
    pub fn add_lora(&mut self, lora: impl Into<LoraUse>) -> Result<()> {
        let mut loras = LoraSet::clone(&self.loras);
        loras.add(lora.into())?;
        self.change_loras(loras)
    }

    /// Changes the strength of a LoRA, by its name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that there is not, and those of [`Pipeline::set_loras`].
    pub fn set_lora_scale(&mut self, name: &str, scale: f64) -> Result<()> {
        let mut loras = LoraSet::clone(&self.loras);
        loras.set_scale(name, scale)?;
        self.change_loras(loras)
    }

    /// Removes a LoRA, by its name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that there is not, and [`Error::Checkpoint`] where LoRAs were
    /// fused with the weights.
    pub fn remove_lora(&mut self, name: &str) -> Result<()> {
        let mut loras = LoraSet::clone(&self.loras);
        loras.remove(name)?;
        self.change_loras(loras)
    }

    fn change_loras(&mut self, loras: LoraSet) -> Result<()> {
        if self.fused { Err(fused_error()) } else { self.put_loras(loras, false) }
    }

    /// Puts LoRAs in force; `fused` tells that the transformer has them in its weights.
    pub(crate) fn put_loras(&mut self, loras: LoraSet, fused: bool) -> Result<()> {
        let (text, dit) = (self.parts.text.in_memory(), self.parts.dit.in_memory());
        if let (Some(text), Some(dit)) = (text, dit) {
            loras.check_patterns(text, dit)?;
        }
        let mut prepared = text.map(|text| loras.prepare_text(text)).transpose()?.unwrap_or_default();
        match dit {
            Some(dit) if !fused => prepared.push(loras.prepare_dit(dit)?),
            // One that is not in memory gets its changes when it is; whether they fit is told now.
            _ => drop(loras.transformer(&self.parts.config)?),
        }
        prepared.into_iter().for_each(Prepared::apply);
        (self.loras, self.fused) = (Frozen::new(loras), fused);
        Ok(())
    }

    /// The text encoders with their LoRAs.
    fn lease_text(&self) -> Result<Lease<'_, TextEncoder>> {
        let text = self.parts.text.lease()?;
        if matches!(text, Lease::Own(_)) {
            self.loras.prepare_text(&text)?.into_iter().for_each(Prepared::apply);
        }
        Ok(text)
    }

    /// The transformer with its LoRAs.
    fn lease_dit(&self) -> Result<Lease<'_, Dit>> {
        let dit = self.parts.dit.lease()?;
        if matches!(dit, Lease::Own(_)) && !self.fused {
            self.loras.prepare_dit(&dit)?.apply();
        }
        Ok(dit)
    }

    /// What a run of this request would do. Takes no time.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request out of range.
    pub fn plan(&self, request: &Request) -> Result<Plan> {
        Plan::new(request, &self.facts)
    }

    /// Edits or generates.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request out of range (before any work),
    /// [`Error::NotFinite`] where a stage fails numerically, [`Error::Torch`] where libtorch does.
    pub fn run(&self, request: &Request) -> Result<Output> {
        self.run_with(request, |_| ControlFlow::Continue(()))
    }

    /// As [`Pipeline::run`], telling what happens and stopping when told to.
    ///
    /// # Errors
    /// Those of [`Pipeline::run`], and [`Error::Cancelled`] where `observe` breaks off.
    pub fn run_with(&self, request: &Request, mut observe: impl FnMut(Event<'_>) -> ControlFlow<()>) -> Result<Output> {
        self.run_stages(request, &mut observe).map_err(|error| self.name_damage(error))
    }

    fn run_stages(&self, request: &Request, observe: Observer<'_>) -> Result<Output> {
        // 1. The plan: all sizes, before any work.
        let plan = self.plan(request)?;
        if let (Some(files), Device::Cpu) = (&self.files, self.device) {
            files.footprint.check(&plan, files.placement, available_memory())?;
        }
        let seed = request.seed.unwrap_or_else(rand::random);
        tell(observe, &plan, Event::Planned { plan: &plan, seed })?;
        // 2. Text.
        let (positive, negative) = self.encode_texts(request, &plan, observe)?;
        // 3. References.
        let vae = self.parts.vae.lease()?;
        let (context, first) = self.encode_references(&vae, request, &plan, observe)?;
        // 4. Noise, over the picture where the run starts from one.
        let mut latents = self.starting_noise(request, &plan, seed)?;
        if request.strength < 1.0 {
            let start = self.start_picture(&vae, request, &plan, first)?;
            latents = add_noise(&pack(&start)?.f_to_kind(latents.kind())?, &latents, &plan.schedule)?;
        }
        tell(observe, &plan, Event::Noise { latents: &latents })?;
        vae.end();
        // 5. Sampling.
        let latents = self.sample(request, &plan, &latents, &positive, negative.as_ref(), context.as_ref(), observe)?;
        // 6. Pictures.
        let vae = self.parts.vae.lease()?;
        let codec = self.codec(&vae, &plan);
        let mut images = Vec::with_capacity(plan.batch);
        for item in 0..plan.batch {
            let tokens = latents.f_narrow(0, item as i64, 1)?;
            images.push(codec.decode(&unpack(&tokens, plan.target)?, plan.output, plan.conformance)?);
            tell(observe, &plan, Event::Decoded { done: item + 1, total: plan.batch })?;
        }
        let none = || Error::invalid("batch", "at least 1 picture", 0);
        let image = images.first().cloned().ok_or_else(none)?;
        let guidance = plan.guidance.unwrap_or_default();
        Ok(Output { image, images, seed, prompt: request.prompt.clone(), guidance, plan })
    }

    /// The prompt and, where there is one, the negative prompt.
    fn encode_texts(
        &self,
        request: &Request,
        plan: &Plan,
        observe: Observer<'_>,
    ) -> Result<(Conditioning, Option<Conditioning>)> {
        let text = self.lease_text()?;
        let mut encode = |prompt: &str, negative: bool| -> Result<Conditioning> {
            let (conditioning, cuts) = text.encode(prompt)?;
            for cut in &cuts {
                tell(observe, plan, Event::Cut { cut })?;
            }
            tell(observe, plan, Event::Encoded { conditioning: &conditioning, negative })?;
            Ok(conditioning)
        };
        let positive = encode(&request.prompt, false)?;
        let negative = request.negative().map(|prompt| encode(prompt, true)).transpose()?;
        text.end();
        Ok((positive, negative))
    }

    /// The context's tokens, and the first reference's latents.
    fn encode_references(
        &self,
        vae: &Autoencoder,
        request: &Request,
        plan: &Plan,
        observe: Observer<'_>,
    ) -> Result<(Option<Tokens>, Option<Tensor>)> {
        let (codec, kind) = (self.codec(vae, plan), plan.conformance.latents_kind(self.precision.dtype));
        let (mut features, mut ids, mut first) = (Vec::new(), Vec::new(), None);
        for (index, (image, reference)) in reference_pictures(request, plan)?.iter().zip(&plan.references).enumerate() {
            // Rounded to the run's dtype where the mode is, also on a CPU, which computes in f32.
            let latents = codec.encode(image, reference.fitted)?.f_to_kind(kind)?;
            tell(observe, plan, Event::Reference { index, latents: &latents })?;
            features.push(pack(&latents)?);
            ids.push(grid_ids(reference.grid, reference.origin)?);
            first.get_or_insert(latents);
        }
        if features.is_empty() {
            return Ok((None, None));
        }
        let tokens = Tokens::new(Tensor::f_cat(&features, 1)?, Tensor::f_cat(&ids, 0)?)?;
        Ok((Some(tokens), first))
    }

    /// The first picture's latents on the target's grid.
    fn start_picture(
        &self,
        vae: &Autoencoder,
        request: &Request,
        plan: &Plan,
        first: Option<Tensor>,
    ) -> Result<Tensor> {
        match (first, plan.references.first(), request.images.first()) {
            (Some(latents), Some(reference), _) if reference.grid == plan.target => Ok(latents),
            (_, _, Some(image)) => self.codec(vae, plan).encode(image, plan.target.size()),
            _ => Err(Error::invalid("strength", "1 where there is no picture to start from", request.strength)),
        }
    }

    /// Noise as tokens [batch, L, 4 C], drawn for each picture from its own seed, or the caller's.
    fn starting_noise(&self, request: &Request, plan: &Plan, seed: u64) -> Result<Tensor> {
        let kind = plan.conformance.latents_kind(self.precision.dtype);
        let (batch, channels) = (plan.batch as i64, self.facts.latent_channels);
        if let Some(given) = &request.noise {
            let tokens = array::from_array(&given.view())?;
            let sizes = [batch, plan.target.tokens(), 4 * channels];
            if tokens.size() != sizes {
                let expected = format!("{sizes:?} (batch, target tokens, 4 * latent channels)");
                return Err(Error::invalid("shape of the noise", expected, format!("{:?}", tokens.size())));
            }
            return Ok(tokens.f_to_kind(kind)?.f_to_device(self.device)?);
        }
        let shape = [1, channels, 2 * plan.target.rows, 2 * plan.target.cols];
        let draw = |item: u64| pack(&noise::randn(&shape, seed.wrapping_add(item), kind, self.device)?);
        let items = (0..plan.batch as u64).map(draw).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&items, 0)?)
    }

    /// The denoising loop: everything that does not depend on the sample is prepared before it.
    #[allow(clippy::too_many_arguments)] // The loop's ingredients, each used once.
    fn sample(
        &self,
        request: &Request,
        plan: &Plan,
        latents: &Tensor,
        positive: &Conditioning,
        negative: Option<&Conditioning>,
        context: Option<&Tokens>,
        observe: Observer<'_>,
    ) -> Result<Tensor> {
        let (dit, Precision { dtype, compute }) = (self.lease_dit()?, self.precision);
        let target_ids = grid_ids(plan.target, Origin { t: 0, y: 0, x: 0 })?;
        let times = plan.schedule.embedded_times(dtype);
        let guidance_value = plan.guidance.map(|g| plan.schedule.embedded_guidance(g, dtype));
        let prepare = |conditioning: &Conditioning| -> Result<Run> {
            dit.prepare(&RunInput {
                conditioning,
                target_ids: &target_ids,
                context,
                times: &times,
                guidance: guidance_value,
            })
        };
        let batched = request.cfg_mode == CfgMode::Batched;
        let (positive, negative) = match negative {
            Some(negative) if batched => {
                (prepare(&repeat(positive, plan.batch)?.stack(&repeat(negative, plan.batch)?)?)?, None)
            }
            Some(negative) => (prepare(positive)?, Some(prepare(negative)?)),
            None => (prepare(positive)?, None),
        };
        let velocity = |x: &Tensor, step: usize| -> Result<Tensor> {
            let x = x.f_to_kind(compute)?;
            let v = if let Some(negative) = &negative {
                guidance::combine(
                    &dit.forward(&positive, step, &x)?,
                    &dit.forward(negative, step, &x)?,
                    request.true_cfg,
                )?
            } else if plan.runs_per_step == 2 {
                guidance::combine_batched(
                    &dit.forward(&positive, step, &Tensor::f_cat(&[&x, &x], 0)?)?,
                    request.true_cfg,
                )?
            } else {
                dit.forward(&positive, step, &x)?
            };
            Ok(v.f_to_kind(dtype)?)
        };
        let sampled = integrate(latents, &plan.schedule, dtype, velocity, |step| {
            observe(Event::Step { done: step.done, total: step.total, sigma: step.sigma, latents: step.latents })
        });
        drop((positive, negative));
        dit.end();
        sampled
    }

    fn codec<'a>(&self, vae: &'a Autoencoder, plan: &Plan) -> Codec<'a> {
        let kind = plan.conformance.vae_kind(self.precision.compute);
        Codec { vae, kind, device: self.device, tiling: self.tiling }
    }

    /// Looks for the damaged tensor behind a result that is not finite.
    fn name_damage(&self, error: Error) -> Error {
        let (Error::NotFinite { stage, .. }, Some(checkpoint)) = (&error, self.checkpoint()) else { return error };
        let path = match stage.as_str() {
            s if s.contains("T5") => &checkpoint.t5,
            s if s.contains("CLIP") => &checkpoint.clip,
            s if s.contains("denoising") => &checkpoint.transformer,
            _ => &checkpoint.vae,
        };
        match Weights::open(path).and_then(|w| w.first_not_finite()) {
            Ok(Some(tensor)) => {
                let hint =
                    format!("tensor `{tensor}` of {} holds NaN or infinity; fetch the file again", path.display());
                Error::NotFinite { stage: stage.clone(), hint }
            }
            _ => error,
        }
    }
}

/// Whether the parts take what the others give.
pub(crate) fn fit(text: &TextEncoder, vae: &Autoencoder, config: &DitConfig) -> Result<()> {
    let fits = |what: &'static str, got: i64, expected: i64| {
        if got == expected {
            Ok(())
        } else {
            Err(Error::invalid(what, format!("{expected}, as the transformer takes"), got))
        }
    };
    fits("channels of the VAE, times 4", vae.latent_channels() * 4, config.in_channels)?;
    fits("width of T5", text.t5().config().d_model, config.context_dim)?;
    fits("width of CLIP", text.clip().config().hidden_size, config.pooled_dim)
}

/// Tells the observer; its wish to stop before the first step becomes an error.
fn tell(observe: Observer<'_>, plan: &Plan, event: Event<'_>) -> Result<()> {
    let total = plan.schedule.steps();
    let done = if matches!(event, Event::Decoded { .. }) { total } else { 0 };
    if observe(event).is_break() { Err(Error::Cancelled { done, total }) } else { Ok(()) }
}

/// One encoded prompt for every picture of a batch.
fn repeat(conditioning: &Conditioning, batch: usize) -> Result<Conditioning> {
    let batch = batch as i64;
    Ok(Conditioning {
        prompt_embeds: conditioning.prompt_embeds.f_expand([batch, -1, -1], false)?,
        pooled: conditioning.pooled.f_expand([batch, -1], false)?,
    })
}
