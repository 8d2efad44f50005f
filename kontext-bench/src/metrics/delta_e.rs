//! Perceived colour differences: CIEDE2000.
//!
//! Source: scikit-image 0.26 `skimage/color/delta_e.py`, `deltaE_ciede2000`, after Sharma et al., "The CIEDE2000
//! Color-Difference Formula" (2005).

use std::f64::consts::{PI, TAU};

use image::RgbImage;
use kontext_core::{Result, threads};
use rayon::prelude::*;

use super::lab::{Converter, Lab};
use super::{CHANNELS, same_size};

/// Chroma at which saturation sets in.
const KNEE: f64 = 25.0;

/// Computes the mean CIEDE2000 over the pixels of two images; 0 for equal images. About 1 is the smallest
/// visible difference of plain colours, 100 the difference of black and white.
///
/// Equal to the mean of `skimage.color.deltaE_ciede2000(rgb2lab(a), rgb2lab(b))` within 1e-6: sRGB under D65,
/// all in f64.
///
/// # Errors
/// [`kontext_core::Error::InvalidArgument`] if the images differ in size.
///
/// # Example
/// ```
/// use image::{Rgb, RgbImage};
/// let (black, white) = (RgbImage::new(4, 4), RgbImage::from_pixel(4, 4, Rgb([255; 3])));
/// assert!((kontext_bench::metrics::delta_e(&black, &white)? - 100.0).abs() < 1e-3);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn delta_e(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    let map = delta_e_map(a, b)?;
    // Summed sequentially, so that the result does not depend on the threads.
    Ok(map.iter().sum::<f64>() / map.len() as f64)
}

/// Computes CIEDE2000 for each pixel, row by row from the top.
///
/// # Errors
/// Same as [`delta_e`].
pub fn delta_e_map(a: &RgbImage, b: &RgbImage) -> Result<Vec<f64>> {
    same_size(a, b)?;
    threads::start()?;
    let converter = Converter::new();
    let (a, b) = (
        a.as_raw().as_chunks::<CHANNELS>().0,
        b.as_raw().as_chunks::<CHANNELS>().0,
    );
    let difference = |(a, b): (&[u8; 3], &[u8; 3])| {
        if a == b {
            0.0
        } else {
            ciede2000(converter.lab(*a), converter.lab(*b))
        }
    };
    Ok(a.par_iter().zip(b).map(difference).collect())
}

fn ciede2000(first: Lab, second: Lab) -> f64 {
    let ([l1, a1, b1], [l2, a2, b2]) = (first, second);
    // Reds and greens of low chroma have more weight.
    let stretch = 1.0 + 0.5 * (1.0 - saturation(0.5 * (a1.hypot(b1) + a2.hypot(b2))));
    let (c1, h1) = polar(a1 * stretch, b1);
    let (c2, h2) = polar(a2 * stretch, b2);

    let l_mean = (0.5 * (l1 + l2) - 50.0).powi(2);
    let l_term = (l2 - l1) / (1.0 + 0.015 * l_mean / (20.0 + l_mean).sqrt());

    let c_mean = 0.5 * (c1 + c2);
    let c_term = (c2 - c1) / (1.0 + 0.045 * c_mean);

    let (turn, h_mean) = hues(h1, h2, c1 * c2 == 0.0);
    let t = 1.0 - 0.17 * (h_mean - 30_f64.to_radians()).cos()
        + 0.24 * (2.0 * h_mean).cos()
        + 0.32 * (3.0 * h_mean + 6_f64.to_radians()).cos()
        - 0.20 * (4.0 * h_mean - 63_f64.to_radians()).cos();
    let h_term = 2.0 * (c1 * c2).sqrt() * (0.5 * turn).sin() / (1.0 + 0.015 * c_mean * t);

    // Rotation term for blues.
    let angle = 30_f64.to_radians() * (-((h_mean.to_degrees() - 275.0) / 25.0).powi(2)).exp();
    let turned = -(2.0 * angle).sin() * 2.0 * saturation(c_mean) * c_term * h_term;
    (l_term.powi(2) + c_term.powi(2) + h_term.powi(2) + turned)
        .max(0.0)
        .sqrt()
}

/// Maps chroma to 0 for greys, up to 1 for strong colours.
fn saturation(chroma: f64) -> f64 {
    let seventh = chroma.powi(7);
    (seventh / (seventh + KNEE.powi(7))).sqrt()
}

/// Returns chroma, and hue from 0 to 2 pi.
fn polar(a: f64, b: f64) -> (f64, f64) {
    let hue = b.atan2(a);
    (a.hypot(b), if hue < 0.0 { hue + TAU } else { hue })
}

/// Returns the shorter rotation from one hue to the other, and the mean hue; greys have none.
fn hues(h1: f64, h2: f64, grey: bool) -> (f64, f64) {
    let (turn, sum) = (h2 - h1, h1 + h2);
    if grey {
        return (0.0, sum);
    }
    if turn.abs() <= PI {
        return (turn, 0.5 * sum);
    }
    let middle = if sum < TAU { sum + TAU } else { sum - TAU };
    (turn - TAU * turn.signum(), 0.5 * middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the test data of Sharma et al., including hue wrap-around and greys.
    const SHARMA: [(Lab, Lab, f64); 6] = [
        ([50.0, 2.6772, -79.7751], [50.0, 0.0, -82.7485], 2.0425),
        ([50.0, 0.0, 0.0], [50.0, -1.0, 2.0], 2.3669),
        ([50.0, 2.5, 0.0], [50.0, 0.0, -2.5], 4.3065),
        ([50.0, 2.5, 0.0], [58.0, 24.0, 15.0], 19.4535),
        ([22.7233, 20.0904, -46.6940], [23.0331, 14.9730, -42.5619], 2.0373),
        ([2.0776, 0.0795, -1.1350], [0.9033, -0.0636, -0.5514], 0.9082),
    ];

    #[test]
    fn the_published_test_data_come_out() {
        for (first, second, expected) in SHARMA {
            let ours = ciede2000(first, second);
            assert!(
                (ours - expected).abs() < 5e-5,
                "{first:?} {second:?}: {ours}, expected {expected}"
            );
        }
    }

    #[test]
    fn equal_images_differ_by_nothing() {
        let image = RgbImage::from_fn(3, 3, |x, y| image::Rgb([200, 70 * x as u8, 70 * y as u8]));
        assert_eq!(delta_e(&image, &image).unwrap(), 0.0);
    }
}
