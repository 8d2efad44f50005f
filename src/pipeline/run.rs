//! One run, stage by stage: plan, text, references, noise, sampling, images.

use std::ops::ControlFlow;
use std::sync::Arc;

use image::RgbImage;
use kontext_core::{Conditioning, During, Error, Result, Stage, Tensor, Tokens, array, buffer};
use kontext_dit::{Arithmetic, CachedRun, Run, RunInput, StepWork};
use kontext_nn::without_fp8;
use kontext_sampler::ids::{Origin, grid_ids};
use kontext_sampler::{CfgMode, Conformance, Inpainting, Sampling, add_noise, guidance, pack};
use kontext_vae::Autoencoder;

use super::Pipeline;
use super::computing::Computing;
use super::masked_edit::MaskedEdit;
use super::noises::Noises;
use super::previews::Painter;
use super::references::first_reference;
use super::results::Results;
use super::texts::EncodedTexts;
use crate::encode::Codec;
use crate::kernels::arithmetic;
use crate::lora::LoraSet;
use crate::{Event, Output, Plan, Request};

/// The callback of a run.
pub(super) type Observer<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

/// A run's output for a session, and the latents [1, C, H, W] of its first reference.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) output: Output,
    pub(crate) first: Option<Tensor>,
}

impl Pipeline {
    /// Edits or generates.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request out of range (before any work), [`Error::NotFinite`] if a
    /// stage fails numerically, [`Error::Memory`], [`Error::Allocation`] and [`Error::Thread`] if the machine lacks
    /// memory or threads, [`Error::Torch`] if libtorch fails.
    pub fn run(&self, request: &Request) -> Result<Output> {
        self.run_with(request, |_| ControlFlow::Continue(()))
    }

    /// Runs as [`Pipeline::run`] does, reports events to `observe` and stops on its request.
    ///
    /// # Errors
    /// Those of [`Pipeline::run`], and [`Error::Cancelled`] if `observe` returns `Break`.
    pub fn run_with(&self, request: &Request, mut observe: impl FnMut(Event<'_>) -> ControlFlow<()>) -> Result<Output> {
        Ok(self.finish(request, &mut observe)?.output)
    }

    /// Runs as [`Pipeline::run_with`] does, and returns more of the result.
    pub(crate) fn finish(&self, request: &Request, observe: Observer<'_>) -> Result<Finished> {
        self.run_stages(request, observe)
            .map_err(|error| self.name_damage(error))
    }

    fn run_stages(&self, request: &Request, observe: Observer<'_>) -> Result<Finished> {
        // 1. The plan: all sizes, before any work.
        let plan = self.plan(request)?;
        let loras = self.chosen_loras(request)?;
        // Threads take address space, so they start before it is measured.
        kontext_core::threads::start()?;
        let computing = &self.computing_of(&plan)?;
        self.check_memory(&plan)?;
        let short = |stage: Stage| {
            let plan = &plan;
            move |error| self.name_shortage(error, plan, stage)
        };
        let colouring = self.colouring(request)?;
        let seed = request.seed.unwrap_or_else(rand::random);
        notify(observe, &plan, Event::Planned { plan: &plan, seed })?;
        for warning in &plan.warnings {
            notify(observe, &plan, Event::Warning { warning })?;
        }
        // 2. Text.
        let EncodedTexts {
            positive,
            negative,
            unseen,
        } = self
            .encode_texts(computing, request, &plan, &loras, observe)
            .map_err(short(Stage::Text))?;
        // 3. References. The autoencoder is loaded only for references not in the cache.
        let mut vae = None;
        let masked = MaskedEdit::new(request, &plan)?;
        let seen = masked.as_ref().map(|masked| masked.seen(request));
        let seen = seen.as_ref().unwrap_or(request);
        let encoded = self.encode_references(computing, &mut vae, seen, &plan, observe);
        let (context, first) = encoded.map_err(short(Stage::References))?;
        // 4. Noise, mixed with the image if the run starts from one.
        let begun = Noises::begin(self, request, &plan, seed).during(Stage::Noise);
        let (mut noises, noise) = begun?;
        let source = if request.strength < 1.0 || masked.is_some() {
            let image = seen_source(masked.as_ref(), request);
            let source = self.start_image(computing, &mut vae, image, &plan, first.as_ref());
            Some(source.map_err(short(Stage::References))?.f_to_kind(noise.kind())?)
        } else {
            None
        };
        let latents = match &source {
            Some(source) if request.strength < 1.0 => add_noise(&pack(source)?, &noise, &plan.schedule)?,
            _ => noise.shallow_clone(),
        };
        let inpainting = match (&masked, &source) {
            (Some(masked), Some(source)) => {
                let mask = masked.latents(plan.target)?.f_to_device(self.device)?;
                Some(Inpainting::new(&mask, source, &noise)?)
            }
            _ => None,
        };
        notify(observe, &plan, Event::Noise { latents: &latents })?;
        let mut painter = match (colouring, request.preview) {
            (Some(colouring), Some(preview)) => {
                Some(self.painter(colouring, preview.every, computing, &mut vae, &plan)?)
            }
            _ => None,
        };
        if let Some(vae) = vae {
            vae.end();
        }
        // 5. Sampling.
        let (latents, work) = self
            .sample(
                computing,
                request,
                &plan,
                &loras,
                &latents,
                inpainting.as_ref(),
                &mut noises,
                &positive,
                negative.as_ref(),
                context.as_ref(),
                painter.as_mut(),
                observe,
            )
            .map_err(short(Stage::Denoise))?;
        // 6. Images.
        let shown = seen_source(masked.as_ref(), request);
        let results = self.results(computing, &plan, shown, masked.as_ref(), &latents, observe)?;
        let Results { images, registrations } = results;
        let image = images.first().ok_or_else(|| Error::bug("a run of no images"))?;
        let image = buffer::copied_image(image)?;
        let guidance = plan.guidance.unwrap_or_default();
        let latents = array::to_array(&latents)?;
        let flops = plan.flops_of(&self.facts, request.cfg_mode, &work);
        let output = Output {
            image,
            images,
            registrations,
            changed: masked.and_then(MaskedEdit::into_shares),
            latents,
            seed,
            prompt: request.prompt.clone(),
            prompt_2: request.prompt_2.clone(),
            guidance,
            unseen,
            work,
            flops,
            plan,
        };
        Ok(Finished { output, first })
    }

    /// Decodes latents [1, C, H, W] to an image of the plan's size.
    pub(crate) fn decode(&self, latents: &Tensor, plan: &Plan) -> Result<RgbImage> {
        let vae = self.parts.vae.lease()?;
        let codec = self.codec(&vae, plan);
        let computing = self.computing_of(plan)?;
        let image = computing.image(|| codec.decode(latents, plan.decoded()));
        vae.end();
        image
    }

    /// Runs the denoising loop; everything independent of the sample is prepared before it. Returns the latents, and the work
    /// of each prompt's steps.
    #[allow(clippy::too_many_arguments)] // The loop's ingredients, each used once.
    fn sample(
        &self,
        computing: &Computing,
        request: &Request,
        plan: &Plan,
        loras: &LoraSet,
        latents: &Tensor,
        inpainting: Option<&Inpainting>,
        noises: &mut Noises,
        positive: &Conditioning,
        negative: Option<&Conditioning>,
        context: Option<&Tokens>,
        mut painter: Option<&mut Painter>,
        observe: Observer<'_>,
    ) -> Result<(Tensor, Vec<Vec<StepWork>>)> {
        let (dit, dtype) = (self.lease_dit(loras)?, self.precision.dtype);
        let missing = self.parts.kernels.missing();
        if let Some(reason) = missing.filter(|_| arithmetic(plan.conformance) == Arithmetic::Fewest) {
            notify(observe, plan, Event::NoKernels { reason: &reason })?;
        }
        let target_ids = grid_ids(plan.target, Origin { t: 0, y: 0, x: 0 })?;
        let times = plan.schedule.embedded_times(dtype);
        let embedded = |guidance: f64| plan.schedule.embedded_guidance(guidance, dtype);
        let by_step = plan.guidance_schedule.as_ref();
        let by_step = by_step.map(|by_step| by_step.values.iter().map(|g| embedded(*g)).collect::<Vec<_>>());
        // The transformer computes in the kind of its conditioning.
        let compute = plan.compute.transformer;
        let prepare = |conditioning: &Conditioning| -> Result<(Run, CachedRun)> {
            let conditioning = &Conditioning {
                prompt_embeds: conditioning.prompt_embeds.f_to_kind(compute)?,
                pooled: conditioning.pooled.shallow_clone(),
            };
            let input = RunInput {
                conditioning,
                target_ids: &target_ids,
                context,
                times: &times,
                guidance: plan.guidance.map(embedded),
            };
            let run = computing.step(|| {
                dit.with(|dit| match &by_step {
                    Some(by_step) => dit.prepare_guided(&input, by_step),
                    None => dit.prepare(&input),
                })
            })?;
            let run = run.arithmetic(arithmetic(plan.conformance));
            let mut cache = dit.with(|dit| dit.step_cache(&plan.step_cache, &run))?;
            if let Some(reuse) = &plan.reference_reuse {
                let first = context.map(|tokens| first_reference(tokens, plan)).transpose()?;
                cache = cache.reuse_references(reuse, &run, plan.schedule.sigmas(), first.flatten())?;
            }
            Ok((run, cache))
        };
        let forward = |(run, cache): &mut (Run, CachedRun), step: usize, x: &Tensor| {
            let forward = || dit.with(|dit| dit.forward_cached(run, step, x, cache));
            // Runs that follow another program have its roundings, unless the builder sets these.
            if plan.fp8 || plan.conformance == Conformance::Native {
                self.attention.scope(forward)
            } else {
                without_fp8(|| self.attention.scope(forward))
            }
        };
        let batched = request.cfg_mode == CfgMode::Batched;
        let (mut positive, mut negative) = match negative {
            Some(negative) if batched => (
                prepare(&repeat(positive, plan.batch)?.stack(&repeat(negative, plan.batch)?)?)?,
                None,
            ),
            Some(negative) => (prepare(positive)?, Some(prepare(negative)?)),
            None => (prepare(positive)?, None),
        };
        // The step whose time and modulation are used is the one that begins at the noise level of `x`.
        let mut predict = |x: &Tensor, step: usize| -> Result<Tensor> {
            let x = x.f_to_kind(compute)?;
            let v = if let Some(negative) = &mut negative {
                guidance::combine(
                    &forward(&mut positive, step, &x)?,
                    &forward(negative, step, &x)?,
                    request.true_cfg,
                )?
            } else if plan.runs_per_step == 2 {
                guidance::combine_batched(
                    &forward(&mut positive, step, &Tensor::f_cat(&[&x, &x], 0)?)?,
                    request.true_cfg,
                )?
            } else {
                forward(&mut positive, step, &x)?
            };
            Ok(v.f_to_kind(dtype)?)
        };
        let velocity = |x: &Tensor, step: usize| computing.step(|| predict(x, step));
        let noise = |_: usize| noises.next().during(Stage::Noise);
        let sampling = Sampling::new(&plan.schedule, dtype)
            .sampler(plan.sampler)
            .inpainting(inpainting);
        let mut failed = None;
        let sampled = sampling.run(latents, noise, velocity, |step| {
            observe(Event::Step {
                done: step.done,
                total: step.total,
                sigma: step.sigma,
                latents: step.latents,
            })?;
            let painted = painter.as_mut().map(|painter| painter.step(computing, step, observe));
            painted
                .unwrap_or(Ok(ControlFlow::Continue(())))
                .unwrap_or_else(|error| {
                    failed = Some(error);
                    ControlFlow::Break(())
                })
        });
        let caches = [Some(positive), negative].into_iter().flatten();
        let work = caches.map(|(_, cache)| cache.into_work()).collect();
        dit.end();
        let sampled = failed.map_or(sampled, Err)?;
        let rest = painter.map(|painter| painter.finish(observe)).transpose()?;
        if rest.is_some_and(|flow| flow.is_break()) {
            let total = plan.schedule.steps();
            return Err(Error::Cancelled { done: total, total });
        }
        Ok((sampled, work))
    }

    pub(super) fn codec<'a>(&self, vae: &'a Autoencoder, plan: &Plan) -> Codec<'a> {
        Codec {
            vae,
            kind: plan.compute.autoencoder,
            device: self.device,
            tiling: self.tiling,
            conformance: plan.conformance,
        }
    }
}

/// Returns the edited image as the model sees it.
fn seen_source<'a>(masked: Option<&'a MaskedEdit>, request: &'a Request) -> Option<&'a Arc<RgbImage>> {
    masked.map(MaskedEdit::source).or(request.images.first())
}

/// Notifies the observer; a `Break` outside the denoising loop becomes an error.
pub(super) fn notify(observe: Observer<'_>, plan: &Plan, event: Event<'_>) -> Result<()> {
    let total = plan.schedule.steps();
    let done = if matches!(event, Event::Decoded { .. }) {
        total
    } else {
        0
    };
    if observe(event).is_break() {
        Err(Error::Cancelled { done, total })
    } else {
        Ok(())
    }
}

/// Repeats one encoded prompt for every image of a batch.
fn repeat(conditioning: &Conditioning, batch: usize) -> Result<Conditioning> {
    let batch = batch as i64;
    Ok(Conditioning {
        prompt_embeds: conditioning.prompt_embeds.f_expand([batch, -1, -1], false)?,
        pooled: conditioning.pooled.f_expand([batch, -1], false)?,
    })
}
