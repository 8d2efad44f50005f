//! Structural similarity.
//!
//! Source: scikit-image 0.26 `skimage/metrics/_structural_similarity.py`, `structural_similarity`, with the
//! settings of Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004).

use image::RgbImage;
use kontext_core::{Result, threads};

use super::plane::Plane;
use super::windows::{SMALL, WINDOW, rows_of_windows};
use super::{at_least, same_size};

/// Computes structural similarity, the mean over channels and windows; 1 for equal images, down to -1.
///
/// Equal to scikit-image's `structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5,
/// use_sample_covariance=False, data_range=255)`, within 1e-6. scikit-image also computes windows over the
/// border, with reflected pixels, and then excludes them from the mean; here they are not computed. All in
/// f64.
///
/// # Errors
/// [`kontext_core::Error::InvalidArgument`] if the images differ in size, or a side is shorter than
/// [`WINDOW`] pixels.
///
/// # Example
/// ```
/// use image::{Rgb, RgbImage};
/// let stripes = RgbImage::from_fn(16, 16, |x, _| Rgb([if x % 2 == 0 { 200 } else { 50 }; 3]));
/// let shifted = RgbImage::from_fn(16, 16, |x, _| Rgb([if x % 2 == 1 { 200 } else { 50 }; 3]));
/// assert_eq!(kontext_bench::metrics::ssim(&stripes, &stripes)?, 1.0);
/// assert!(kontext_bench::metrics::ssim(&stripes, &shifted)? < -0.9);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn ssim(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    similarity_of(a, b, Plane::colour)
}

/// Computes structural similarity of the luma, `0.2125 R + 0.7154 G + 0.0721 B`; otherwise as [`ssim`].
///
/// Equal to scikit-image's `structural_similarity(rgb2gray(a), rgb2gray(b), gaussian_weights=True, sigma=1.5,
/// use_sample_covariance=False, data_range=1)`, within 1e-6.
///
/// # Errors
/// Same as [`ssim`].
pub fn ssim_grey(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    similarity_of(a, b, Plane::luma)
}

fn similarity_of(a: &RgbImage, b: &RgbImage, plane: impl Fn(&RgbImage) -> Plane) -> Result<f64> {
    same_size(a, b)?;
    threads::start()?;
    at_least(a, WINDOW, SMALL)?;
    let row = |_, windows: &[_]| (sum(windows), windows.len());
    let rows = rows_of_windows(&plane(a), &plane(b), row);
    let (sum, count) = rows
        .iter()
        .fold((0.0, 0), |(sum, count), row| (sum + row.0, count + row.1));
    Ok(sum / count as f64)
}

fn sum(windows: &[super::windows::Similarity]) -> f64 {
    windows.iter().map(|window| window.whole).sum()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::metrics::windows::C1;

    #[test]
    fn flat_images_differ_by_their_luminance_alone() {
        let (a, b) = (
            RgbImage::from_pixel(20, 11, Rgb([100; 3])),
            RgbImage::from_pixel(20, 11, Rgb([200; 3])),
        );
        let expected = (2.0 * 100.0 * 200.0 + C1) / (100.0 * 100.0 + 200.0 * 200.0 + C1);
        assert!((ssim(&a, &b).unwrap() - expected).abs() < 1e-9);
        assert!((ssim_grey(&a, &b).unwrap() - expected).abs() < 1e-9);
    }

    #[test]
    fn a_image_smaller_than_the_window_is_refused() {
        let small = RgbImage::new(40, 10);
        let error = ssim(&small, &small).unwrap_err();
        let expected = "invalid images: expected at least 11x11 pixels, the size of the window, got 40x10";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn images_of_different_size_are_refused() {
        assert!(ssim(&RgbImage::new(20, 30), &RgbImage::new(30, 20)).is_err());
    }
}
