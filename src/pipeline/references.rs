//! The reference images of a run, encoded.

use std::sync::Arc;

use image::RgbImage;
use kontext_core::{Error, Result, Tensor, Tokens, array};
use kontext_dit::FirstReference;
use kontext_sampler::ids::grid_ids;
use kontext_sampler::{Grid, Size, pack, unpack};
use kontext_vae::Autoencoder;

use super::Pipeline;
use super::computing::Computing;
use super::encodings::{ImageKey, Lookup};
use super::run::{Observer, notify};
use crate::encode::reference_images;
use crate::placement::Lease;
use crate::{Event, Plan, Request};

impl Pipeline {
    /// Returns the context's tokens, and the first reference's latents.
    pub(super) fn encode_references<'a>(
        &'a self,
        computing: &Computing,
        vae: &mut Option<Lease<'a, Autoencoder>>,
        request: &Request,
        plan: &Plan,
        observe: Observer<'_>,
    ) -> Result<(Option<Tokens>, Option<Tensor>)> {
        let kind = plan.conformance.latents_kind(self.precision.dtype);
        let (mut features, mut ids, mut first) = (Vec::new(), Vec::new(), None);
        for (index, (image, reference)) in reference_images(request, plan)?
            .iter()
            .zip(&plan.references)
            .enumerate()
        {
            let given = request.image_latents.as_ref().filter(|_| index == 0);
            let latents = if let Some(given) = given {
                let tokens = array::from_array(&given.view())?
                    .f_to_kind(kind)?
                    .f_to_device(self.device)?;
                unpack(&tokens, reference.grid)?
            } else {
                let (latents, cached) = self.encode_image(computing, vae, image, reference.fitted, plan)?;
                let event = Event::Reference {
                    index,
                    latents: &latents,
                    cached,
                };
                notify(observe, plan, event)?;
                latents
            };
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

    /// Returns the edited image's latents on the target's grid; `first` is the first reference's.
    pub(super) fn start_image<'a>(
        &'a self,
        computing: &Computing,
        vae: &mut Option<Lease<'a, Autoencoder>>,
        image: Option<&Arc<RgbImage>>,
        plan: &Plan,
        first: Option<&Tensor>,
    ) -> Result<Tensor> {
        let first = first.filter(|_| plan.sees_source());
        match (first, plan.references.first(), image) {
            (Some(latents), Some(reference), _) if reference.grid == plan.target => Ok(latents.shallow_clone()),
            (_, _, Some(image)) => Ok(self.encode_image(computing, vae, image, plan.target.size(), plan)?.0),
            _ => Err(Error::bug("a strength below 1 without an image to start from")),
        }
    }

    /// Returns an image's latents [1, C, H, W], and `true` if they were in the cache.
    fn encode_image<'a>(
        &'a self,
        computing: &Computing,
        vae: &mut Option<Lease<'a, Autoencoder>>,
        image: &Arc<RgbImage>,
        fitted: Size,
        plan: &Plan,
    ) -> Result<(Tensor, bool)> {
        let key = ImageKey {
            image: Arc::clone(image),
            fitted,
            conformance: plan.conformance,
            threads: plan.threads.map(|threads| threads.images),
        };
        let missing = match self.encodings.image(key) {
            Lookup::Cached(latents) => return Ok((latents, true)),
            Lookup::Missing(missing) => missing,
        };
        let codec = self.codec(Lease::begin(vae, || self.parts.vae.lease())?, plan);
        // Rounded to the run's dtype if the mode is, also on a CPU, which computes in f32.
        let kind = plan.conformance.latents_kind(self.precision.dtype);
        let latents = computing.image(|| codec.encode(image, fitted))?.f_to_kind(kind)?;
        missing.add(&latents);
        Ok((latents, false))
    }
}

/// Returns the latents of the first reference, with which edited tokens are compared.
pub(super) fn first_reference(context: &Tokens, plan: &Plan) -> Result<Option<FirstReference>> {
    let Some(reference) = plan.references.first() else {
        return Ok(None);
    };
    let sides = |grid: Grid| [grid.rows, grid.cols];
    Ok(Some(FirstReference {
        latents: context.features.f_narrow(1, 0, reference.grid.tokens())?,
        grid: sides(reference.grid),
        target: sides(plan.target),
    }))
}
