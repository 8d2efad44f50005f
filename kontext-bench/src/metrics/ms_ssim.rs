//! Structural similarity at five scales.
//!
//! Source: Wang et al., "Multiscale structural similarity for image quality assessment" (2003), as
//! VainF/pytorch-msssim 1.0.0 `pytorch_msssim/ssim.py`, `ms_ssim`, computes it.

use image::RgbImage;
use kontext_core::{Result, threads};
use rayon::prelude::*;

use super::plane::Plane;
use super::windows::{Similarity, WINDOW, rows_of_windows};
use super::{CHANNELS, at_least, same_size};

/// The paper's exponents, from full size down.
const EXPONENTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];

/// Shortest side that still holds a window after four halvings, by pytorch-msssim's rule.
pub const LEAST_SIDE: usize = (WINDOW - 1) * 16 + 1;

/// Computes structural similarity at five scales, each half the size of the previous one; the mean over the
/// channels. From 0 to 1, and 1 for equal images.
///
/// Equal to `pytorch_msssim.ms_ssim(a, b, data_range=255)` within 1e-6, quirks included: an odd side is
/// halved with a black pixel before its first, and negative similarities count as 0. torchmetrics and the
/// paper's own program drop the last pixel instead; on sides that are multiples of 16 they all agree.
///
/// # Errors
/// [`kontext_core::Error::InvalidArgument`] if the images differ in size, or a side is shorter than
/// [`LEAST_SIDE`] pixels.
pub fn ms_ssim(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    same_size(a, b)?;
    threads::start()?;
    at_least(a, LEAST_SIDE, "for a window of 11 after four halvings")?;
    let (mut a, mut b) = (Plane::colour(a), Plane::colour(b));
    let mut product = [1.0; CHANNELS];
    for (scale, exponent) in EXPONENTS.into_iter().enumerate() {
        let last = scale + 1 == EXPONENTS.len();
        // The luminance is compared only at the smallest scale.
        let means = means(&a, &b, |window| if last { window.whole } else { window.contrast });
        for (product, mean) in product.iter_mut().zip(means) {
            *product *= mean.max(0.0).powf(exponent);
        }
        if !last {
            (a, b) = (halved(&a), halved(&b));
        }
    }
    Ok(product.iter().sum::<f64>() / CHANNELS as f64)
}

/// Averages the windows of each channel.
fn means(a: &Plane, b: &Plane, value: impl Fn(&Similarity) -> f64 + Sync) -> [f64; CHANNELS] {
    let rows = rows_of_windows(a, b, |_, windows| {
        let sum = |channel| windows.iter().skip(channel).step_by(CHANNELS).map(&value).sum::<f64>();
        let sums: [f64; CHANNELS] = std::array::from_fn(sum);
        (sums, windows.len() / CHANNELS)
    });
    let count: usize = rows.iter().map(|(_, count)| count).sum();
    std::array::from_fn(|channel| rows.iter().filter_map(|(sums, _)| sums.get(channel)).sum::<f64>() / count as f64)
}

/// Averages 2x2 pixels, as `avg_pool2d(x, 2, padding=size % 2)` does: black pixels beyond the border count.
fn halved(plane: &Plane) -> Plane {
    let (width, height) = (plane.width.div_ceil(2), plane.height().div_ceil(2));
    let pair = |index: usize, size: usize| {
        let first = 2 * index + size % 2;
        [first.checked_sub(2 * (size % 2)), Some(first + 1 - 2 * (size % 2))]
    };
    let row = |y: usize| {
        let rows = pair(y, plane.height()).map(|y| y.map(|y| plane.row(y)));
        (0..width * plane.channels).map(move |at| {
            let (x, channel) = (at / plane.channels, at % plane.channels);
            let value = |row: &Option<&[f64]>, x: Option<usize>| {
                row.and_then(|row| row.get(x? * plane.channels + channel))
                    .copied()
                    .unwrap_or_default()
            };
            let columns = pair(x, plane.width);
            rows.iter()
                .flat_map(|row| columns.iter().map(|x| value(row, *x)))
                .sum::<f64>()
                / 4.0
        })
    };
    let values = (0..height).into_par_iter().flat_map_iter(row).collect();
    Plane {
        values,
        width,
        channels: plane.channels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_side_is_halved_with_black_before_its_first_pixel() {
        let plane = Plane {
            values: vec![4.0, 8.0, 12.0, 20.0, 24.0, 28.0],
            width: 3,
            channels: 1,
        };
        assert_eq!(halved(&plane).values, [6.0, 18.0]);
    }

    #[test]
    fn a_image_that_cannot_be_halved_four_times_is_refused() {
        let small = RgbImage::new(400, 160);
        let error = ms_ssim(&small, &small).unwrap_err().to_string();
        let expected = "invalid images: expected at least 161x161 pixels, for a window of 11 after four halvings, ";
        assert_eq!(error, format!("{expected}got 400x160"));
    }
}
