//! Variety of the results of one request under different seeds.

use image::RgbImage;
use kontext_core::{Error, Result};

use super::{PEAK, psnr};

/// Computes the mean distance of all pairs of images: the root mean square of their difference, in levels. 0 for
/// images that are all equal, as those of a model that has collapsed to one answer.
///
/// # Errors
/// [`Error::InvalidArgument`] for fewer than 2 images, or images of different sizes.
///
/// # Example
/// ```
/// use image::{Rgb, RgbImage};
/// use kontext_bench::metrics::diversity;
/// let [a, b, c] = [0, 30, 30].map(|level| RgbImage::from_pixel(4, 4, Rgb([level; 3])));
/// assert!((diversity(&[&a, &b, &c])? - 20.0).abs() < 1e-9);
/// assert_eq!(diversity(&[&b, &c])?, 0.0);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn diversity(images: &[&RgbImage]) -> Result<f64> {
    let (mut sum, mut pairs) = (0.0, 0.0);
    for (index, a) in images.iter().enumerate() {
        for b in images.iter().skip(index + 1) {
            sum += PEAK * 10_f64.powf(-psnr(a, b)? / 20.0);
            pairs += 1.0;
        }
    }
    if pairs > 0.0 {
        return Ok(sum / pairs);
    }
    Err(Error::invalid("images", "at least 2, of different seeds", images.len()))
}
