//! Distances between 8-bit RGB images, and between sets of them: by pixels, colours, structure, and features of
//! a network.

mod change;
mod delta_e;
mod diversity;
mod embedder;
mod gradient;
mod kernel_distance;
mod kid;
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
pub use diversity::diversity;
pub use embedder::{Embedder, identity};
pub use gradient::{gradient, relative_sharpness};
pub use kernel_distance::{Samples, kernel_distance};
pub use kid::Kid;
pub use ms_ssim::{LEAST_SIDE, ms_ssim};
pub use perceptual::{Backbone, Features, Perceptual};
pub use psnr::psnr;
pub(crate) use psnr::psnr_where;
pub use sharpness::sharpness;
pub use ssim::{ssim, ssim_grey};
pub use windows::WINDOW;

/// Red, green and blue.
const CHANNELS: usize = 3;

/// Highest 8-bit level: the range that the metrics refer to.
const PEAK: f64 = 255.0;

/// Smallest share of an image whose error is meaningful.
pub(crate) const LEAST_SHARE: f64 = 0.02;

/// Checks that two images have the same size.
pub(crate) fn same_size(a: &RgbImage, b: &RgbImage) -> Result<()> {
    if a.dimensions() == b.dimensions() {
        return Ok(());
    }
    Err(Error::invalid(
        "images",
        "two of one size",
        format!("{} and {}", size(a), size(b)),
    ))
}

/// Formats a size as "768x512".
fn size(image: &RgbImage) -> String {
    format!("{}x{}", image.width(), image.height())
}

/// Fails if a side is shorter than `least`.
fn at_least(image: &RgbImage, least: usize, why: &str) -> Result<()> {
    if image.width().min(image.height()) as usize >= least {
        return Ok(());
    }
    Err(Error::invalid(
        "images",
        format!("at least {least}x{least} pixels, {why}"),
        size(image),
    ))
}
