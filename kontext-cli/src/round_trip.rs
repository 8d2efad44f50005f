//! An image through an autoencoder and back.

use anyhow::Context;
use kontext::image::RgbImage;
use kontext::{Autoencoder, Device, Kind, Pipeline, Tensor, Tiling};
use kontext_core::images;

/// Encodes and decodes an image, whole or in tiles of `tile` pixels.
///
/// # Errors
/// If the image or the tile does not suit the autoencoder, or libtorch fails.
pub fn round_trip(vae: &Autoencoder, image: &RgbImage, tile: Option<i64>, device: Device) -> anyhow::Result<RgbImage> {
    let pixels = images::to_tensor(image, Kind::Float, device)?;
    match tile {
        Some(tile) => {
            let tiling = Tiling {
                tile,
                overlap: tile / 4 / 8 * 8,
            };
            to_image(&vae.decode_tiled(&vae.encode_latents_tiled(&pixels, tiling)?, tiling)?)
        }
        None => decode(vae, &vae.encode_latents(&pixels)?),
    }
}

/// Decodes latents of one image.
pub(crate) fn decode(vae: &Autoencoder, latents: &Tensor) -> anyhow::Result<RgbImage> {
    to_image(&vae.decode(latents)?)
}

/// Opens the autoencoder of a loaded model a second time: a pipeline does not lend its own.
pub(crate) fn autoencoder(pipe: &Pipeline) -> anyhow::Result<Autoencoder> {
    let checkpoint = pipe.checkpoint().context("the model has no folder")?;
    Ok(Autoencoder::open(&checkpoint.vae, Kind::Float, pipe.device())?)
}

fn to_image(pixels: &Tensor) -> anyhow::Result<RgbImage> {
    let images = images::from_tensor(pixels, images::Rounding::Nearest)?;
    images.into_iter().next().context("the autoencoder returned no image")
}
