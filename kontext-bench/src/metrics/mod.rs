//! Distances between 8-bit RGB pictures: by pixels, by colours, by structure, and by the features of a network.

mod change;
mod delta_e;
mod embedder;
mod lab;
mod ms_ssim;
mod perceptual;
mod plane;
mod psnr;
mod sharpness;
mod ssim;
mod windows;

use image::RgbImage;
use kontext_core::{Error, Result};

pub use change::{ChangeMap, DEFAULT_THRESHOLD, Magnitude};
pub use delta_e::{delta_e, delta_e_map};
pub use embedder::{Embedder, identity};
pub use ms_ssim::{LEAST_SIDE, ms_ssim};
pub use perceptual::{Backbone, Features, Perceptual};
pub use psnr::psnr;
pub(crate) use psnr::psnr_where;
pub use sharpness::sharpness;
pub use ssim::{ssim, ssim_grey};
pub use windows::WINDOW;

/// Red, green and blue.
const CHANNELS: usize = 3;

/// The highest level of 8 bits: the range that the metrics refer to.
const PEAK: f64 = 255.0;

/// The least share of a picture whose error says something.
pub(crate) const LEAST_SHARE: f64 = 0.02;

/// Two pictures can only be compared pixel by pixel.
pub(crate) fn same_size(a: &RgbImage, b: &RgbImage) -> Result<()> {
    if a.dimensions() == b.dimensions() {
        return Ok(());
    }
    Err(Error::invalid(
        "pictures",
        "two of one size",
        format!("{} and {}", size(a), size(b)),
    ))
}

/// "768x512".
fn size(picture: &RgbImage) -> String {
    format!("{}x{}", picture.width(), picture.height())
}

/// Fails where a side is shorter than `least`.
fn at_least(picture: &RgbImage, least: usize, why: &str) -> Result<()> {
    if picture.width().min(picture.height()) as usize >= least {
        return Ok(());
    }
    Err(Error::invalid(
        "pictures",
        format!("at least {least}x{least} pixels, {why}"),
        size(picture),
    ))
}
