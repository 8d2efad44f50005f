//! Structural similarity.
//!
//! Source: scikit-image 0.26 `skimage/metrics/_structural_similarity.py`, `structural_similarity`, with the
//! settings of Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004).

use image::RgbImage;
use kontext_core::{Error, Result};
use rayon::prelude::*;

use super::{CHANNELS, PEAK, same_size};

/// Side of the gaussian window in pixels; a picture must be at least as large.
pub const WINDOW: usize = 2 * RADIUS + 1;

/// scipy cuts the gaussian at 3.5 standard deviations: `int(3.5 * 1.5 + 0.5)`.
const RADIUS: usize = 5;
/// Standard deviation of the window, in pixels.
const SIGMA: f64 = 1.5;
/// Stabilises the comparison of dark windows: `(K1 * 255)²` with Wang's K1.
const C1: f64 = (0.01 * PEAK) * (0.01 * PEAK);
/// Stabilises the comparison of flat windows: `(K2 * 255)²` with Wang's K2.
const C2: f64 = (0.03 * PEAK) * (0.03 * PEAK);

/// The means of a window that structural similarity is made of: a, b, a², b², ab.
type Moments = [f64; 5];

/// Structural similarity, the mean over channels and windows; 1 for equal pictures, down to -1.
///
/// Equal to scikit-image's `structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5,
/// use_sample_covariance=False, data_range=255)`, within 1e-6. That computes windows over the border too,
/// with reflected pixels, and then leaves them out of the mean; here they are not computed. All in f64.
///
/// # Errors
/// [`Error::InvalidArgument`] for pictures of different size, or smaller than [`WINDOW`] pixels on a side.
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
    same_size(a, b)?;
    let (width, height) = (a.width() as usize, a.height() as usize);
    if width < WINDOW || height < WINDOW {
        let expected = format!("at least {WINDOW}x{WINDOW} pixels, the size of the window");
        return Err(Error::invalid("pictures", expected, format!("{width}x{height}")));
    }
    let (kernel, stride) = (gaussian(), width * CHANNELS);
    let bands = |picture| RgbImage::as_raw(picture).par_windows(WINDOW * stride).step_by(stride);
    // The sums of the rows are added one after the other, so the result does not depend on the threads.
    let rows: Vec<f64> = bands(a).zip(bands(b)).map(|(a, b)| row_of_windows(a, b, stride, &kernel)).collect();
    let windows = (height - WINDOW + 1) * (width - WINDOW + 1) * CHANNELS;
    Ok(rows.iter().sum::<f64>() / windows as f64)
}

/// The sum of the similarities of all windows within a band of [`WINDOW`] rows of `stride` levels.
fn row_of_windows(a: &[u8], b: &[u8], stride: usize, kernel: &[f64; WINDOW]) -> f64 {
    /// From a window's first column to its last, in levels.
    const REACH: usize = (WINDOW - 1) * CHANNELS + 1;
    let mut columns = vec![[0.0; 5]; stride];
    for ((a, b), weight) in a.chunks_exact(stride).zip(b.chunks_exact(stride)).zip(kernel) {
        for ((column, a), b) in columns.iter_mut().zip(a).zip(b) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            add_weighted(column, &[a, b, a * a, b * b, a * b], *weight);
        }
    }
    let similarity_at = |columns: &[Moments]| {
        let mut window = [0.0; 5];
        for (column, weight) in columns.iter().step_by(CHANNELS).zip(kernel) {
            add_weighted(&mut window, column, *weight);
        }
        similarity(&window)
    };
    columns.windows(REACH).map(similarity_at).sum()
}

fn add_weighted(sum: &mut Moments, term: &Moments, weight: f64) {
    for (sum, term) in sum.iter_mut().zip(term) {
        *sum += weight * term;
    }
}

/// The similarity of one window: luminance times contrast and structure.
fn similarity([a, b, aa, bb, ab]: &Moments) -> f64 {
    let (variance_a, variance_b, covariance) = (aa - a * a, bb - b * b, ab - a * b);
    let luminance = (2.0 * a * b + C1) / (a * a + b * b + C1);
    luminance * (2.0 * covariance + C2) / (variance_a + variance_b + C2)
}

/// The window's weights along one axis; their sum is one.
fn gaussian() -> [f64; WINDOW] {
    let weight = |tap: usize| (-0.5 * ((tap as f64 - RADIUS as f64) / SIGMA).powi(2)).exp();
    let weights: [f64; WINDOW] = std::array::from_fn(weight);
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn flat_pictures_differ_by_their_luminance_alone() {
        let (a, b) = (RgbImage::from_pixel(20, 11, Rgb([100; 3])), RgbImage::from_pixel(20, 11, Rgb([200; 3])));
        let expected = (2.0 * 100.0 * 200.0 + C1) / (100.0 * 100.0 + 200.0 * 200.0 + C1);
        assert!((ssim(&a, &b).unwrap() - expected).abs() < 1e-9);
    }

    #[test]
    fn a_picture_smaller_than_the_window_is_refused() {
        let small = RgbImage::new(40, 10);
        let error = ssim(&small, &small).unwrap_err();
        let expected = "invalid pictures: expected at least 11x11 pixels, the size of the window, got 40x10";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn pictures_of_different_size_are_refused() {
        assert!(ssim(&RgbImage::new(20, 30), &RgbImage::new(30, 20)).is_err());
    }
}
