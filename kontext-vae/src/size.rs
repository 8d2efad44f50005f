//! Validation of the sizes of images and latents.

use kontext_core::{Error, Result, Tensor, check};

/// Pixels along each side of one latent: 8 for every autoencoder of this crate.
pub const DOWNSCALE: i64 = 8;

/// Checks that an image is [B, channels, H, W] with sides that are positive multiples of [`DOWNSCALE`].
pub(crate) fn check_image(image: &Tensor, channels: i64) -> Result<()> {
    let [_, _, height, width] = check::dims("image", image, "[B, 3, H, W]")?;
    check::shape("image", image, "[B, 3, H, W]", &[None, Some(channels), None, None])?;
    if [height, width].iter().all(|side| *side > 0 && side % DOWNSCALE == 0) {
        return Ok(());
    }
    let expected = format!("a height and a width that are multiples of {DOWNSCALE} pixels");
    Err(Error::invalid(
        "image size",
        expected,
        format!("{height}x{width} (height x width)"),
    ))
}

/// Checks that latents are [B, channels, H/8, W/8] and not empty.
pub(crate) fn check_latents(latents: &Tensor, channels: i64) -> Result<()> {
    const SHAPE: &str = "[B, latent channels, H/8, W/8]";
    let [_, _, height, width] = check::dims("latents", latents, SHAPE)?;
    if height == 0 || width == 0 {
        return Err(Error::invalid(
            "latents size",
            "at least one latent",
            format!("{height}x{width}"),
        ));
    }
    let got = latents.size().get(1).copied().unwrap_or_default();
    if got == channels {
        return Ok(());
    }
    let expected = format!("the {channels} that this autoencoder has");
    Err(Error::invalid("number of latent channels", expected, got))
}
