//! Sharpness of a single image.
//!
//! Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study" (2000),
//! the variance of the Laplacian.

use image::RgbImage;
use kontext_core::Result;

use super::at_least;
use super::plane::Plane;

/// Computes the variance of the Laplacian of the luma, in squared levels: 0 for a flat image, a few tens for
/// a blurred photo, hundreds and more for a sharp or noisy one. Compare it only between images of the same
/// scene and size.
///
/// The Laplacian is the sum of the four neighbours minus four times the pixel, with the image mirrored at its
/// outermost pixels; the luma is `0.2125 R + 0.7154 G + 0.0721 B`. Equal to `scipy.ndimage.laplace(255 *
/// skimage.color.rgb2gray(a), mode="mirror").var()` within a relative 1e-9, and, except for the rounding of
/// the luma, to `cv2.Laplacian(grey, cv2.CV_64F).var()`.
///
/// # Errors
/// [`kontext_core::Error::InvalidArgument`] if a side has fewer than 2 pixels.
///
/// # Example
/// ```
/// use image::{Rgb, RgbImage};
/// use kontext_bench::metrics::sharpness;
/// let edge = RgbImage::from_fn(16, 16, |x, _| Rgb([if x < 8 { 0 } else { 200 }; 3]));
/// let ramp = RgbImage::from_fn(16, 16, |x, _| Rgb([x as u8 * 12; 3]));
/// assert!(sharpness(&edge)? > 50.0 * sharpness(&ramp)?);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn sharpness(image: &RgbImage) -> Result<f64> {
    at_least(image, 2, "so that each has neighbours")?;
    let luma = Plane::luma(image);
    let (width, height) = (luma.width, luma.height());
    let laplacian = luma.by_rows(|y, out| {
        let (above, row, below) = (
            luma.row(mirrored(y, -1, height)),
            luma.row(y),
            luma.row(mirrored(y, 1, height)),
        );
        let at = |row: &[f64], x: usize| row.get(x).copied().unwrap_or_default();
        for (x, out) in out.iter_mut().enumerate() {
            let sides = at(row, mirrored(x, -1, width)) + at(row, mirrored(x, 1, width));
            *out = at(above, x) + at(below, x) + sides - 4.0 * at(row, x);
        }
    });
    let count = laplacian.values.len() as f64;
    let mean = laplacian.values.iter().sum::<f64>() / count;
    Ok(laplacian.values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count)
}

/// Returns the neighbour of `index` on one side, or on the other at a border.
fn mirrored(index: usize, step: isize, size: usize) -> usize {
    let other = || index.saturating_add_signed(-step);
    index
        .checked_add_signed(step)
        .filter(|next| *next < size)
        .unwrap_or_else(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bright_pixel_has_the_variance_that_its_kernel_gives() {
        let mut image = RgbImage::new(5, 5);
        image.put_pixel(2, 2, image::Rgb([100; 3]));
        // -400 once and 100 four times among 25 pixels, with mean 0.
        let expected = (160_000.0 + 4.0 * 10_000.0) / 25.0;
        assert!((sharpness(&image).unwrap() - expected).abs() < 1e-9);
    }
}
