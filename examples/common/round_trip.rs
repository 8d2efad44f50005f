//! A picture through an autoencoder and back.

use anyhow::Context;
use kontext::crates::kontext_core::picture;
use kontext::image::RgbImage;
use kontext::{Autoencoder, Device, Kind, Tiling};

/// Encodes and decodes, whole or in tiles of so many pixels.
pub fn round_trip(
    vae: &Autoencoder,
    picture: &RgbImage,
    tile: Option<i64>,
    device: Device,
) -> anyhow::Result<RgbImage> {
    let pixels = picture::to_tensor(picture, Kind::Float, device)?;
    let back = match tile {
        Some(tile) => {
            let tiling = Tiling {
                tile,
                overlap: tile / 4 / 8 * 8,
            };
            vae.decode_tiled(&vae.encode_latents_tiled(&pixels, tiling)?, tiling)?
        }
        None => vae.decode(&vae.encode_latents(&pixels)?)?,
    };
    let back = picture::from_tensor(&back, picture::Rounding::Nearest)?;
    back.into_iter().next().context("the autoencoder returned no picture")
}
