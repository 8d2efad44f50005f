//! A masked run's image, worked out: its padding, the part that the model sees, and the way back.

use std::sync::Arc;

use image::{GrayImage, ImageBuffer, Pixel, RgbImage};
use kontext_core::{Error, Kind, Result, Tensor, array, buffer};
use kontext_sampler::{Conformance, Grid, Size};

use crate::blend::{latent_shares, mix_into};
use crate::mask::{Mask, Region, latents_mask, shares};
use crate::plan::MaskPlan;
use crate::{Plan, Request};

/// Pixels on the side of a latent.
const LATENT: usize = kontext_vae::DOWNSCALE as usize;

/// A request's source and the shares of the result in it.
#[derive(Debug)]
pub(super) struct MaskedEdit {
    /// The source with its padding.
    canvas: Arc<RgbImage>,
    /// The share of the result in each of its pixels; in other conventions the mask itself.
    shares: GrayImage,
    plan: MaskPlan,
    /// The region that the model sees.
    source: Arc<RgbImage>,
    conformance: Conformance,
}

impl MaskedEdit {
    /// Works out the mask of a request, if it has one.
    pub(super) fn new(request: &Request, plan: &Plan) -> Result<Option<Self>> {
        let (Some(masked), Some(image)) = (plan.mask, request.images.first()) else {
            return Ok(None);
        };
        let size = Size::new(image.width(), image.height());
        let of_mask = |mask: &Mask| -> Result<GrayImage> {
            if MaskPlan::mixes(request.conformance) {
                shares::shares(&mask.pixels, &mask.settings)
            } else {
                cropped(&mask.pixels, Region::all(size))
            }
        };
        let (canvas, shares) = match (&request.outpaint, &request.mask) {
            (None, Some(mask)) => (Arc::clone(image), of_mask(mask)?),
            (Some(outpaint), mask) => {
                let (canvas, old) = outpaint.canvas(size)?;
                let mut shares = shares::of_padding(canvas, old, outpaint.feather_of(size))?;
                if let Some(mask) = mask {
                    shares::raise(&mut shares, &of_mask(mask)?, old.left, old.top);
                }
                (Arc::new(outpaint.pad(image, canvas, old)?), shares)
            }
            (None, None) => return Err(Error::bug("a plan with a mask for a request without one")),
        };
        let source = if masked.is_whole() {
            Arc::clone(&canvas)
        } else {
            Arc::new(cropped(&canvas, masked.region)?)
        };
        Ok(Some(Self {
            canvas,
            shares,
            plan: masked,
            source,
            conformance: request.conformance,
        }))
    }

    /// Returns the part of the source that the model repaints.
    pub(super) fn source(&self) -> &Arc<RgbImage> {
        &self.source
    }

    /// Returns the request with the images that the model sees.
    pub(super) fn seen(&self, request: &Request) -> Request {
        let mut seen = request.clone();
        let mut index = 0;
        if let Some(first) = seen.images.first_mut() {
            *first = Arc::clone(&self.source);
        }
        seen.images.retain(|_| {
            index += 1;
            self.plan.context.has(index - 1)
        });
        seen
    }

    /// Returns the mask [1, 1, 2 rows, 2 cols] of the target's latents, from 0, kept, to 1, in f32 on the CPU.
    pub(super) fn latents(&self, grid: Grid) -> Result<Tensor> {
        match self.conformance {
            Conformance::Native => latent_shares(&cropped(&self.shares, self.plan.region)?, grid),
            Conformance::Diffusers | Conformance::Bfl => latents_mask(&self.shares, grid),
        }
    }

    /// Returns an image of the target's size that is 255 where latents are repainted, and 0 elsewhere.
    pub(super) fn repainted(&self, grid: Grid) -> Result<GrayImage> {
        let mask = array::to_array(&self.latents(grid)?.f_gt(0.0)?.f_to_kind(Kind::Float)?)?;
        let Size { width, height } = grid.size();
        let mut levels = buffer::with_room((width * height) as usize, "the repainted pixels")?;
        for y in 0..height as usize {
            let latent = |x: usize| mask[[0, 0, y / LATENT, x / LATENT]];
            levels.extend((0..width as usize).map(|x| if latent(x) > 0.0 { 255 } else { 0 }));
        }
        let missing = || Error::bug("repainted pixels that are missing");
        GrayImage::from_raw(width, height, levels).ok_or_else(missing)
    }

    /// Mixes a result of the region's size into the source; in other conventions it is returned as it is.
    pub(super) fn mixed(&self, result: RgbImage) -> Result<RgbImage> {
        if !MaskPlan::mixes(self.conformance) {
            return Ok(result);
        }
        let Region { left, top, .. } = self.plan.region;
        let mut whole = buffer::copied_image(&self.canvas)?;
        mix_into(&mut whole, &result, &self.shares, [left, top]);
        Ok(whole)
    }

    /// Returns the share of the result in each pixel of the returned image; `None` if it is not mixed.
    pub(super) fn into_shares(self) -> Option<GrayImage> {
        MaskPlan::mixes(self.conformance).then_some(self.shares)
    }
}

/// Returns a part of an image.
fn cropped<P: Pixel<Subpixel = u8>>(
    image: &ImageBuffer<P, Vec<u8>>,
    region: Region,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    let channels = usize::from(P::CHANNEL_COUNT);
    let Size { width, height } = region.size;
    let (stride, row) = (image.width() as usize * channels, width as usize * channels);
    let mut part = buffer::with_room(row * height as usize, "the part of the image that the model sees")?;
    let rows = image.as_raw().chunks_exact(stride).skip(region.top as usize);
    for pixels in rows.take(height as usize) {
        part.extend_from_slice(&pixels[region.left as usize * channels..][..row]);
    }
    let missing = || Error::bug("a part of an image with missing pixels");
    ImageBuffer::from_raw(width, height, part).ok_or_else(missing)
}
