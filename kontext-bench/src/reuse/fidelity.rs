//! Likeness of two runs' results.

use image::RgbImage;
use kontext_core::{Error, Result};

use crate::metrics::{Perceptual, psnr, ssim};
use crate::statistics::Summary;

/// Likeness of the results of a run to those of another on the same requests and seeds, such as the exact run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// PSNR in dB; equal results count as [`PSNR_CAP`](crate::statistics::PSNR_CAP).
    pub psnr: Summary,
    /// SSIM.
    pub ssim: Summary,
    /// Distance in the features of a network; `None` without one.
    pub pdist: Option<Summary>,
}

impl Fidelity {
    /// Compares results with those of the exact run, in the same order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the numbers or sizes differ, or there are no results; the errors of
    /// [`Perceptual::distance`].
    ///
    /// # Example
    /// ```
    /// use image::{Rgb, RgbImage};
    /// use kontext_bench::reuse::Fidelity;
    /// let exact = RgbImage::from_fn(16, 16, |x, y| Rgb([x as u8 * 9, y as u8 * 7, 80]));
    /// let near = RgbImage::from_fn(16, 16, |x, y| Rgb([x as u8 * 9 + 1, y as u8 * 7, 80]));
    /// let equal = Fidelity::of(&[exact.clone()], &[exact.clone()], None)?;
    /// assert_eq!((equal.psnr.mean, equal.ssim.mean), (60.0, 1.0));
    /// assert!(Fidelity::of(&[near], &[exact], None)?.psnr.mean < 60.0);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn of(results: &[RgbImage], exact: &[RgbImage], perceptual: Option<&Perceptual>) -> Result<Self> {
        if results.len() != exact.len() {
            let expected = format!("one for each of {} exact ones", exact.len());
            return Err(Error::invalid("results", expected, results.len()));
        }
        let pairs: Vec<(&RgbImage, &RgbImage)> = results.iter().zip(exact).collect();
        let each = |metric: fn(&RgbImage, &RgbImage) -> Result<f64>| {
            pairs.iter().map(|(a, b)| metric(a, b)).collect::<Result<Vec<f64>>>()
        };
        let distance = |perceptual: &Perceptual| Summary::of(&perceptual.distance(&pairs)?);
        Ok(Self {
            psnr: Summary::of_psnr(&each(psnr)?)?,
            ssim: Summary::of(&each(ssim)?)?,
            pdist: perceptual.map(distance).transpose()?,
        })
    }
}
