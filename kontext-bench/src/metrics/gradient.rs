//! Mean gradient of an image: its sharpness relative to a reference.

use image::RgbImage;
use kontext_core::Result;
use rayon::prelude::*;

use super::{CHANNELS, at_least, same_size};

/// Computes the mean absolute difference of horizontal neighbours plus that of vertical ones, over all three
/// channels, in levels: 0 for a flat image.
///
/// The differences are summed as integers, so the result does not depend on the order.
///
/// # Errors
/// [`kontext_core::Error::InvalidArgument`] if a side has fewer than 2 pixels.
///
/// # Example
/// ```
/// use image::{Rgb, RgbImage};
/// use kontext_bench::metrics::gradient;
/// let ramp = RgbImage::from_fn(16, 8, |x, y| Rgb([(x * 5 + y * 2) as u8; 3]));
/// assert_eq!(gradient(&ramp)?, 7.0);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn gradient(image: &RgbImage) -> Result<f64> {
    at_least(image, 2, "so that each has neighbours")?;
    let (levels, row) = (image.as_raw(), image.width() as usize * CHANNELS);
    let sum = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
    let along: u64 = levels
        .par_chunks(row)
        .map(|row| sum(row, row.get(CHANNELS..).unwrap_or_default()))
        .sum();
    let below = levels.get(row..).unwrap_or_default();
    let across: u64 = levels
        .par_chunks(row)
        .zip(below.par_chunks(row))
        .map(|(a, b)| sum(a, b))
        .sum();
    let (height, count) = (image.height() as usize, levels.len());
    Ok(along as f64 / (count - height * CHANNELS) as f64 + across as f64 / (count - row) as f64)
}

/// Computes the [`gradient`] of an image over that of a reference of the same scene: 1 if it is as sharp, less
/// if it is blurred, more if it has noise or ringing. `None` if the reference is flat.
///
/// # Errors
/// [`kontext_core::Error::InvalidArgument`] if the images differ in size, or a side has fewer than 2 pixels.
///
/// # Example
/// ```
/// use image::{Rgb, RgbImage};
/// use kontext_bench::metrics::relative_sharpness;
/// let (stripes, grey) = (|level: u8| RgbImage::from_fn(8, 8, |x, _| Rgb([level * (x % 2) as u8; 3])), RgbImage::new(8, 8));
/// assert_eq!(relative_sharpness(&stripes(100), &stripes(200))?, Some(0.5));
/// assert_eq!(relative_sharpness(&stripes(100), &grey)?, None);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn relative_sharpness(image: &RgbImage, reference: &RgbImage) -> Result<Option<f64>> {
    same_size(image, reference)?;
    let of_reference = gradient(reference)?;
    Ok((of_reference > 0.0).then_some(gradient(image)? / of_reference))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bright_pixel_has_four_edges() {
        let mut image = RgbImage::new(6, 5);
        image.put_pixel(2, 2, image::Rgb([100, 0, 0]));
        // Two differences of 100 among 5 x 5 x 3 along rows, and two among 6 x 4 x 3 along columns.
        let expected = 200.0 / 75.0 + 200.0 / 72.0;
        assert!((gradient(&image).unwrap() - expected).abs() < 1e-12);
        assert!(gradient(&RgbImage::new(1, 5)).is_err());
    }
}
