//! Distances between two 8-bit RGB pictures of one size.

mod psnr;
mod ssim;

use image::RgbImage;
use kontext_core::{Error, Result};

pub use psnr::psnr;
pub use ssim::{WINDOW, ssim};

/// Red, green and blue.
const CHANNELS: usize = 3;

/// The highest level of 8 bits: the range that both metrics refer to.
const PEAK: f64 = 255.0;

/// Two pictures can only be compared pixel by pixel.
fn same_size(a: &RgbImage, b: &RgbImage) -> Result<()> {
    if a.dimensions() == b.dimensions() {
        return Ok(());
    }
    let size = |picture: &RgbImage| format!("{}x{}", picture.width(), picture.height());
    Err(Error::invalid("pictures", "two of one size", format!("{} and {}", size(a), size(b))))
}
