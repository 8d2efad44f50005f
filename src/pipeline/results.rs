//! The images of a run: decoded, registered, and mixed into their source.

use std::sync::Arc;

use image::RgbImage;
use kontext_core::{Result, Stage, Tensor, images};
use kontext_sampler::unpack;

use super::Pipeline;
use super::computing::Computing;
use super::masked_edit::MaskedEdit;
use super::run::{Observer, notify};
use crate::{Event, Plan, Registration};

/// The images of a batch.
#[derive(Debug)]
pub(super) struct Results {
    pub(super) images: Vec<RgbImage>,
    /// One for each image, if they are registered.
    pub(super) registrations: Vec<Registration>,
}

impl Pipeline {
    /// Makes the images of the latents [batch, L, 4 C]; `source` is the edited image as the model sees it.
    pub(super) fn results(
        &self,
        computing: &Computing,
        plan: &Plan,
        source: Option<&Arc<RgbImage>>,
        masked: Option<&MaskedEdit>,
        latents: &Tensor,
        observe: Observer<'_>,
    ) -> Result<Results> {
        let short = |error| self.name_shortage(error, plan, Stage::Decode);
        let vae = self.parts.vae.lease().map_err(short)?;
        let codec = self.codec(&vae, plan);
        let place = match source.filter(|_| plan.registers) {
            Some(source) => Some(Place::new(source, masked, plan)?),
            None => None,
        };
        let mut results = Results {
            images: Vec::with_capacity(plan.batch),
            registrations: Vec::new(),
        };
        for item in 0..plan.batch {
            let tokens = latents.f_narrow(0, item as i64, 1)?;
            let tokens = unpack(&tokens, plan.target)?;
            let size = plan.decoded();
            let image = match &place {
                None => computing.image(|| codec.decode(&tokens, size)).map_err(short)?,
                Some(place) => {
                    let image = computing.image(|| codec.decode(&tokens, plan.target.size()));
                    let image = image.map_err(short)?;
                    let registration = place.measure(&image)?;
                    results.registrations.push(registration);
                    registration.resampled(&image, size.width, size.height)?
                }
            };
            results.images.push(match masked {
                Some(masked) => masked.mixed(image)?,
                None => image,
            });
            let (done, total) = (item + 1, plan.batch);
            notify(observe, plan, Event::Decoded { done, total })?;
        }
        vae.end();
        Ok(results)
    }
}

/// The place in which results belong: the source at the model's size, and the pixels that are repainted.
struct Place {
    source: RgbImage,
    repainted: Option<image::GrayImage>,
}

impl Place {
    fn new(source: &RgbImage, masked: Option<&MaskedEdit>, plan: &Plan) -> Result<Self> {
        let size = plan.target.size();
        Ok(Self {
            source: images::resize(source, size.width, size.height)?,
            repainted: masked.map(|masked| masked.repainted(plan.target)).transpose()?,
        })
    }

    fn measure(&self, result: &RgbImage) -> Result<Registration> {
        Registration::measure(&self.source, result, self.repainted.as_ref())
    }
}
