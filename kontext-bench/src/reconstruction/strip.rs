//! Crops of originals and their reconstructions, with error maps, in one image.

use image::imageops::{self, crop_imm};
use image::{Rgb, RgbImage};
use kontext_core::{Error, Result};

use crate::metrics::sharpness;

/// White gap between the crops, in pixels.
const GAP: u32 = 4;
/// Brightness gain of the error maps.
const GAIN: u8 = 4;
/// Largest side of a crop.
const MOST: u32 = 1024;
/// Divisor of the crop's side that gives the step of the search for detail.
const STEPS: u32 = 4;

/// An image that grows by two lines for each original: the crop and its reconstructions, and below each
/// reconstruction its error map. In the map, black is no error, and white an error of 64 levels or more in
/// any channel.
#[derive(Debug, Clone)]
pub struct Strip {
    side: u32,
    columns: u32,
    rows: Vec<RgbImage>,
}

impl Strip {
    /// Creates an empty strip for `reconstructions` reconstructions of each original, in crops of `side`
    /// pixels, from 1 to 1024; smaller if an image is smaller.
    #[must_use]
    pub fn new(reconstructions: usize, side: u32) -> Self {
        Self {
            side: side.clamp(1, MOST),
            columns: reconstructions as u32 + 1,
            rows: Vec::new(),
        }
    }

    /// Adds the crop of an original with the most detail ([`sharpness`]), and those of its reconstructions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the number of reconstructions or the size of one is wrong.
    pub fn add(&mut self, original: &RgbImage, reconstructions: &[RgbImage]) -> Result<()> {
        if reconstructions.len() as u32 + 1 != self.columns {
            let expected = format!("{} for each original", self.columns - 1);
            return Err(Error::invalid("reconstructions", expected, reconstructions.len()));
        }
        if let Some(other) = reconstructions.iter().find(|r| r.dimensions() != original.dimensions()) {
            let size = |image: &RgbImage| format!("{}x{}", image.width(), image.height());
            return Err(Error::invalid(
                "reconstruction",
                format!("the original's size, {}", size(original)),
                size(other),
            ));
        }
        let (x, y) = self.detail(original)?;
        let crop = |image: &RgbImage| crop_imm(image, x, y, self.side, self.side).to_image();
        let pitch = self.side + GAP;
        let mut row = RgbImage::from_pixel(self.columns * pitch - GAP, 2 * pitch - GAP, Rgb([255; 3]));
        let original = crop(original);
        imageops::replace(&mut row, &original, 0, 0);
        for (column, reconstruction) in (1..).zip(reconstructions) {
            let reconstruction = crop(reconstruction);
            let left = i64::from(column * pitch);
            imageops::replace(&mut row, &reconstruction, left, 0);
            imageops::replace(&mut row, &error_map(&original, &reconstruction), left, i64::from(pitch));
        }
        self.rows.push(row);
        Ok(())
    }

    /// Returns the whole strip; `None` if nothing was added.
    #[must_use]
    pub fn image(&self) -> Option<RgbImage> {
        let pitch = self.rows.first()?.height() + 3 * GAP;
        let [width, height] = self.size(self.rows.len());
        let mut image = RgbImage::from_pixel(width, height, Rgb([255; 3]));
        for (top, row) in (0_i64..).step_by(pitch as usize).zip(&self.rows) {
            imageops::replace(&mut image, row, 0, top);
        }
        Some(image)
    }

    /// Returns width and height of the image of this many originals.
    #[must_use]
    pub fn size(&self, originals: usize) -> [u32; 2] {
        let (pitch, rows) = (self.side + GAP, u32::try_from(originals).unwrap_or(u32::MAX));
        let height = (2 * pitch + 2 * GAP).saturating_mul(rows).saturating_sub(3 * GAP);
        [self.columns.saturating_mul(pitch) - GAP, height]
    }

    /// Finds the first pixel of the crop with the most detail.
    fn detail(&self, image: &RgbImage) -> Result<(u32, u32)> {
        let starts = |length: u32| {
            let last = length.saturating_sub(self.side);
            (0..=last).step_by((self.side / STEPS).max(1) as usize)
        };
        let (mut best, mut most) = ((0, 0), f64::NEG_INFINITY);
        for (x, y) in starts(image.height()).flat_map(|y| starts(image.width()).map(move |x| (x, y))) {
            let detail = sharpness(&crop_imm(image, x, y, self.side, self.side).to_image())?;
            if detail > most {
                (best, most) = ((x, y), detail);
            }
        }
        Ok(best)
    }
}

/// Returns the largest channel difference, times [`GAIN`], as grey.
fn error_map(original: &RgbImage, reconstruction: &RgbImage) -> RgbImage {
    RgbImage::from_fn(original.width(), original.height(), |x, y| {
        let (a, b) = (original.get_pixel(x, y).0, reconstruction.get_pixel(x, y).0);
        let error = a.iter().zip(b).map(|(a, b)| a.abs_diff(b)).max().unwrap_or_default();
        Rgb([error.saturating_mul(GAIN); 3])
    })
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    #[test]
    fn the_crop_with_the_most_detail_stands_above_its_error() {
        let noisy = |x: u32, y: u32| if x >= 16 && y < 16 { (x * 71 + y * 37) as u8 } else { 90 };
        let original = RgbImage::from_fn(32, 24, |x, y| Rgb([noisy(x, y); 3]));
        let off = RgbImage::from_fn(32, 24, |x, y| Rgb([noisy(x, y).saturating_add(2); 3]));
        let mut strip = Strip::new(1, 16);
        assert!(strip.image().is_none());
        strip.add(&original, from_ref(&off)).unwrap();
        strip.add(&original, from_ref(&original)).unwrap();
        let image = strip.image().unwrap();
        assert_eq!(image.dimensions(), (36, 2 * 36 + 12));
        // Its upper right corner, next to the reconstruction.
        assert_eq!(
            crop_imm(&image, 0, 0, 16, 16).to_image(),
            crop_imm(&original, 16, 0, 16, 16).to_image()
        );
        assert_eq!(
            crop_imm(&image, 20, 0, 16, 16).to_image(),
            crop_imm(&off, 16, 0, 16, 16).to_image()
        );
        assert_eq!(image.get_pixel(25, 25).0, [8; 3]);
        assert_eq!(
            (image.get_pixel(5, 25).0, image.get_pixel(25, 48 + 25).0),
            ([255; 3], [0; 3])
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (a, b) = (RgbImage::new(32, 32), RgbImage::new(32, 16));
        let mut strip = Strip::new(2, 16);
        assert!(
            strip
                .add(&a, from_ref(&a))
                .unwrap_err()
                .to_string()
                .contains("expected 2 for each original, got 1")
        );
        assert!(
            strip
                .add(&a, &[a.clone(), b])
                .unwrap_err()
                .to_string()
                .contains("the original's size, 32x32")
        );
        let mut small = Strip::new(1, 100);
        small.add(&a, from_ref(&a)).unwrap();
        assert_eq!(small.image().unwrap().dimensions(), (204, 204));
    }
}
