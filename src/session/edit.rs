//! One edit of a session: a run that continues from the current image.

use std::ops::ControlFlow;
use std::sync::Arc;

use image::{GrayImage, RgbImage};
use kontext_core::{Error, Result, Tensor, array, buffer};
use kontext_sampler::{References, pack};
use ndarray::ArrayD;

use super::{KeepUnchanged, Session, Turn};
use crate::blend::{mix_into, mix_latents};
use crate::output::Made;
use crate::pipeline::Finished;
use crate::{Event, Plan, Request};

impl Session {
    /// Edits the current image. Both encoders see the prompt. The result becomes the current one.
    ///
    /// # Errors
    /// Those of [`Session::run`].
    pub fn edit(&mut self, prompt: impl Into<String>) -> Result<&Turn> {
        let request = self.request(prompt);
        self.run(&request)
    }

    /// Returns the request that [`Session::edit`] runs: [`Session::defaults`] with this prompt for both
    /// encoders. For [`Session::run_with`], which reports progress.
    #[must_use]
    pub fn request(&self, prompt: impl Into<String>) -> Request {
        let mut request = self.defaults.clone().prompt(prompt);
        request.prompt_2 = None;
        request
    }

    /// Edits the current image with a request. The request's own images are further references.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request of several images, one with [`Request::image_latents`], or
    /// one whose result does not cover the same area, as [`Session::keep_unchanged`] requires; those of
    /// [`Pipeline::run`](crate::Pipeline::run). The session is then unchanged.
    pub fn run(&mut self, request: &Request) -> Result<&Turn> {
        self.run_with(request, |_| ControlFlow::Continue(()))
    }

    /// Runs as [`Session::run`] does, reports events to `observe` and stops on its request.
    ///
    /// # Errors
    /// Those of [`Session::run`], and [`Error::Cancelled`] if `observe` returns `Break`.
    pub fn run_with(
        &mut self,
        request: &Request,
        mut observe: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<&Turn> {
        // 1. The edited image, before the request's own images.
        let source = self.history.current();
        let mut whole = request.clone();
        whole.images.insert(0, Arc::new(buffer::copied_image(&source.image)?));
        let plan = self.pipe.plan(&whole)?;
        self.check(request, source, &plan)?;
        whole.image_latents = self.handed_over(source, request, &plan);
        // 2. A normal run.
        let Finished { output, first } = self.pipe.finish(&whole, &mut observe)?;
        // 3. Pixels that the edit did not change are restored.
        let (image, latents, changed) = match (&self.keep_unchanged, first) {
            (Some(keep), Some(first)) if plan.mask.is_none() => {
                let (image, latents, map) =
                    self.put_back(keep, source, &first, &output.image, &output.latents, &plan)?;
                (image, Some(latents), Some(map))
            }
            // A mask of the request has restored them in the run. The latents of a part are no context of the whole.
            _ => {
                let whole = plan.mask.is_none_or(|mask| mask.is_whole());
                (output.image, whole.then_some(output.latents), output.changed)
            }
        };
        // The latents are where the run made them, and not where the registered pixels are.
        let moved = output
            .registrations
            .iter()
            .any(|registration| !registration.is_identity());
        let latents = latents.filter(|_| !moved);
        // 4. The turn.
        let made = Made {
            seed: output.seed,
            steps: plan.schedule.steps(),
            sampler: plan.sampler,
            shift: plan.shift,
            guidance: output.guidance,
            guidance_schedule: plan.guidance_schedule.clone(),
            prompt_weights: plan.prompt_weights,
            model_size: plan.target.size(),
            step_cache: plan.step_cache,
            reference_reuse: plan.reference_reuse.clone(),
        };
        let request = Request {
            seed: Some(output.seed),
            ..request.clone()
        };
        Ok(self.history.add(|id, parent| Turn {
            parent: Some(parent),
            changed,
            latents,
            warnings: plan.warnings,
            unseen: output.unseen,
            edit: Some((request, made)),
            ..Turn::given(id, image)
        }))
    }

    /// Checks the request before any work.
    fn check(&self, request: &Request, source: &Turn, plan: &Plan) -> Result<()> {
        if request.batch != 1 {
            return Err(Error::invalid("batch", "1 image in a turn of a session", request.batch));
        }
        if request.image_latents.is_some() {
            let expected = "none in a session, which hands its own over; use `replace` for another image";
            return Err(Error::invalid("image_latents", expected, "some"));
        }
        let Some(keep) = self.keep_unchanged.as_ref().filter(|_| plan.mask.is_none()) else {
            return Ok(());
        };
        keep.check(&source.image)?;
        let aligned = plan.references.first().is_some_and(|first| {
            first.grid == plan.target && first.input == plan.output && source.image.width() == first.input.width
        });
        if aligned {
            return Ok(());
        }
        let expected = "a result in the place of the image: no width, height, native size or stitched references, in \
                        the conventions of Kontext";
        Err(Error::invalid(
            "request under keep_unchanged",
            expected,
            format!("a result of {}", plan.output),
        ))
    }

    /// Returns the source's latents, if the run can continue from them.
    fn handed_over(&self, source: &Turn, request: &Request, plan: &Plan) -> Option<ArrayD<f32>> {
        let joined = request.references == References::Stitch && !request.images.is_empty();
        let fits = plan.references.first().is_some_and(|first| source.is_of(first.fitted));
        let whole = request.outpaint.is_none()
            && plan
                .mask
                .is_none_or(|mask| mask.is_whole() && mask.context.has_source());
        source
            .latents
            .clone()
            .filter(|_| fits && whole && !joined && !self.reencode)
    }

    /// Restores the source in a turn's unchanged regions, and returns its image, latents and map.
    ///
    /// The difference is computed between the decoded latents of both, so that losses of the autoencoder do
    /// not count as changes. Latents follow their pixels: in unchanged regions they remain those of the first
    /// image, turn after turn.
    fn put_back(
        &self,
        keep: &KeepUnchanged,
        source: &Turn,
        first: &Tensor,
        image: &RgbImage,
        latents: &ArrayD<f32>,
        plan: &Plan,
    ) -> Result<(RgbImage, ArrayD<f32>, GrayImage)> {
        let map = keep.map(image, plan, || self.pipe.decode(first, plan))?;
        let mut mixed = buffer::copied_image(&source.image)?;
        mix_into(&mut mixed, image, &map, [0, 0]);
        let result = array::from_array(&latents.view())?;
        let latents = mix_latents(&pack(first)?, &result, &map, plan.target)?;
        Ok((mixed, array::to_array(&latents)?, map))
    }
}
