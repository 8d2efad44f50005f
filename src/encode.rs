//! Reference images to latents, latents to images.

use std::sync::Arc;

use image::{GenericImage, RgbImage};
use kontext_core::{Device, Error, Kind, Result, Stage, Tensor, buffer, check, images};
use kontext_dit::Arithmetic;
use kontext_nn::GroupNorm;
use kontext_sampler::{Conformance, References, Size};
use kontext_vae::{Autoencoder, Tiling};

use crate::kernels::arithmetic;
use crate::plan::stitched_width;
use crate::{Plan, Request};

/// Returns the tiling of an image of `area` pixels by default: none up to 2048 x 2048.
pub(crate) fn default_tiling(area: u64) -> Option<Tiling> {
    const UNTILED_AREA: u64 = 2048 * 2048;
    (area > UNTILED_AREA).then(Tiling::default)
}

/// An autoencoder with the dtype, device, tiling and conventions of a run.
#[derive(Debug)]
pub(crate) struct Codec<'a> {
    pub(crate) vae: &'a Autoencoder,
    pub(crate) kind: Kind,
    pub(crate) device: Device,
    pub(crate) tiling: Option<Tiling>,
    pub(crate) conformance: Conformance,
}

impl Codec<'_> {
    /// Encodes an image, stretched to `size`, to latents [1, C, H, W], scaled and shifted.
    pub(crate) fn encode(&self, image: &RgbImage, size: Size) -> Result<Tensor> {
        let pixels = if image.dimensions() == (size.width, size.height) {
            images::to_tensor(image, self.kind, self.device)?
        } else {
            let fitted = images::resize(image, size.width, size.height)?;
            images::to_tensor(&fitted, self.kind, self.device)?
        };
        let latents = self.rounded(|| match self.tiles(&pixels.size(), 1) {
            Some(tiling) => self.vae.encode_latents_tiled(&pixels, tiling),
            None => self.vae.encode_latents(&pixels),
        })?;
        check::finite(Stage::Encode, &latents)?;
        Ok(latents)
    }

    /// Decodes latents [1, C, H, W] to an image of `size`.
    pub(crate) fn decode(&self, latents: &Tensor, size: Size) -> Result<RgbImage> {
        let latents = latents.f_to_kind(self.kind)?;
        let pixels = self.rounded(|| match self.tiles(&latents.size(), kontext_vae::DOWNSCALE) {
            Some(tiling) => self.vae.decode_tiled(&latents, tiling),
            None => self.vae.decode(&latents),
        })?;
        check::finite(Stage::Decode, &pixels)?;
        let rounding = match self.conformance {
            Conformance::Native | Conformance::Diffusers => images::Rounding::Nearest,
            Conformance::Bfl => images::Rounding::Down,
        };
        let none = || Error::bug("decoded latents of no image");
        let image = images::from_tensor(&pixels, rounding)?
            .into_iter()
            .next()
            .ok_or_else(none)?;
        if image.dimensions() == (size.width, size.height) {
            return Ok(image);
        }
        images::resize(&image, size.width, size.height)
    }

    /// Computes with the roundings of the run's conventions: kernels round less often than other programs, and on a CPU
    /// libtorch's group norms are less exact in the memory format of all of them.
    fn rounded<T>(&self, compute: impl FnOnce() -> T) -> T {
        match arithmetic(self.conformance) {
            Arithmetic::Fewest => compute(),
            Arithmetic::Diffusers | Arithmetic::Bfl => GroupNorm::by_libtorch_in(compute),
        }
    }

    fn tiles(&self, shape: &[i64], pixels: i64) -> Option<Tiling> {
        let area = shape.iter().rev().take(2).map(|side| side * pixels).product::<i64>();
        self.tiling.or_else(|| default_tiling(area.unsigned_abs()))
    }
}

/// Returns the images to encode, in the order of the plan's references.
pub(crate) fn reference_images(request: &Request, plan: &Plan) -> Result<Vec<Arc<RgbImage>>> {
    if request.references != References::Stitch {
        return Ok(request.images.clone());
    }
    let Some(whole) = plan.references.first() else {
        return Ok(Vec::new());
    };
    let Size { width, height } = whole.input;
    let pixels = buffer::filled(0, 3 * width as usize * height as usize, "the joined reference images")?;
    let missing = || Error::bug("joined reference images with missing pixels");
    let mut joined = RgbImage::from_raw(width, height, pixels).ok_or_else(missing)?;
    let mut x = 0;
    for image in &request.images {
        let width = stitched_width(Size::new(image.width(), image.height()), whole.input.height);
        let part = images::resize(image, width, whole.input.height)?;
        joined
            .copy_from(&part, x, 0)
            .map_err(|error| Error::bug(format!("reference images that do not join ({error})")))?;
        x += width;
    }
    Ok(vec![Arc::new(joined)])
}

#[cfg(test)]
mod tests {
    use kontext_nn::Weights;
    use kontext_vae::{AutoencoderKl, VaeConfig};

    use super::*;

    #[test]
    fn an_image_is_encoded_by_the_group_norms_of_the_conventions() {
        let config = VaeConfig {
            block_out_channels: [32, 32, 64, 64],
            ..VaeConfig::flux()
        };
        let vae = Autoencoder::Kl(AutoencoderKl::new(&Weights::synthetic(3), &config).unwrap());
        let image = RgbImage::from_fn(128, 96, |x, y| {
            image::Rgb([(x * 2) as u8, (y * 2) as u8, (x + y) as u8])
        });
        let size = Size::new(128, 96);
        let latents = |conformance| {
            let (kind, device) = (Kind::Float, Device::Cpu);
            let codec = Codec {
                vae: &vae,
                kind,
                device,
                tiling: None,
                conformance,
            };
            codec.encode(&image, size).unwrap()
        };
        let pixels = images::to_tensor(&image, Kind::Float, Device::Cpu).unwrap();
        let exact = vae.encode_latents(&pixels).unwrap();
        let theirs = GroupNorm::by_libtorch_in(|| vae.encode_latents(&pixels)).unwrap();
        assert!(!theirs.equal(&exact));
        assert!(latents(Conformance::Diffusers).equal(&theirs) && latents(Conformance::Bfl).equal(&theirs));
        assert!(latents(Conformance::Native).equal(&exact));
    }
}
