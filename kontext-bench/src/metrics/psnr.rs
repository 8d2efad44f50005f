//! Peak signal-to-noise ratio.
//!
//! Source: scikit-image 0.26 `skimage/metrics/simple_metrics.py`, `peak_signal_noise_ratio`.

use image::RgbImage;
use kontext_core::{Result, threads};
use rayon::prelude::*;

use super::{CHANNELS, LEAST_SHARE, PEAK, same_size};

/// Levels summed by one thread: enough to outweigh the cost of dispatch.
const CHUNK: usize = CHANNELS << 14;

/// Computes the peak signal-to-noise ratio in dB, `10 log10(255² / mean((a - b)²))`, over all three channels;
/// infinite for equal images.
///
/// The squares are summed as integers, so the result does not depend on the order.
///
/// # Errors
/// [`kontext_core::Error::InvalidArgument`] if the images differ in size.
///
/// # Example
/// ```
/// use image::{Rgb, RgbImage};
/// let (black, white) = (RgbImage::new(4, 4), RgbImage::from_pixel(4, 4, Rgb([255; 3])));
/// assert_eq!(kontext_bench::metrics::psnr(&black, &white)?, 0.0);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn psnr(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    same_size(a, b)?;
    threads::start()?;
    let chunks = a.as_raw().par_chunks(CHUNK).zip(b.as_raw().par_chunks(CHUNK));
    let sum: u64 = chunks.map(|(x, y)| squares(x, y)).sum();
    Ok(decibels(sum, a.as_raw().len() as u64))
}

/// Computes [`psnr`] over the pixels for whose index `keep` holds; `None` if fewer than [`LEAST_SHARE`] are
/// left. Both images must have the same size.
pub(crate) fn psnr_where(a: &RgbImage, b: &RgbImage, keep: impl Fn(usize) -> bool) -> Option<f64> {
    let pixels = a
        .as_raw()
        .chunks_exact(CHANNELS)
        .zip(b.as_raw().chunks_exact(CHANNELS))
        .enumerate();
    let kept = pixels.filter(|(index, _)| keep(*index));
    let (sum, count) = kept.fold((0, 0), |(sum, count), (_, (a, b))| {
        (sum + squares(a, b), count + CHANNELS as u64)
    });
    (count as f64 >= LEAST_SHARE * a.as_raw().len() as f64).then(|| decibels(sum, count))
}

fn squares(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum()
}

/// Converts a sum of squares over `count` values to dB.
fn decibels(sum: u64, count: u64) -> f64 {
    if sum == 0 {
        f64::INFINITY
    } else {
        10.0 * (PEAK * PEAK * count as f64 / sum as f64).log10()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_level_in_one_of_many_values_is_counted() {
        let a = RgbImage::new(300, 200);
        let mut b = a.clone();
        b.get_pixel_mut(299, 199).0[2] = 1;
        let expected = 10.0 * (PEAK * PEAK * 180_000.0).log10();
        assert!((psnr(&a, &b).unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn images_of_different_size_are_refused() {
        let error = psnr(&RgbImage::new(2, 3), &RgbImage::new(3, 2)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid images: expected two of one size, got 2x3 and 3x2"
        );
    }
}
