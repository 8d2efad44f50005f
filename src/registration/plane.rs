//! Planes of f32 values: luma, its halves, and its texture.

use image::{GrayImage, RgbImage};
use kontext_core::{Result, buffer};
use rayon::prelude::*;

/// The memory of a plane, in messages.
const PURPOSE: &str = "the registration of a result";

/// One value a pixel, row by row.
#[derive(Debug, Clone)]
pub(super) struct Plane {
    pub width: usize,
    pub height: usize,
    pub values: Vec<f32>,
}

impl Plane {
    /// Returns a plane of the values that `fill` writes, row by row.
    fn of_rows(width: usize, height: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Result<Self> {
        let mut values = buffer::filled(0.0, width * height, PURPOSE)?;
        let rows = values.par_chunks_exact_mut(width.max(1)).enumerate();
        rows.for_each(|(y, row)| fill(y, row));
        Ok(Self { width, height, values })
    }

    /// Computes the luma of an image, in levels.
    pub(super) fn luma(image: &RgbImage) -> Result<Self> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        Self::of_rows(width, height, |y, row| {
            let pixels = image.as_raw()[3 * width * y..].chunks_exact(3);
            for (luma, pixel) in row.iter_mut().zip(pixels) {
                // Rec. 601, as in JPEG.
                *luma = 0.299 * f32::from(pixel[0]) + 0.587 * f32::from(pixel[1]) + 0.114 * f32::from(pixel[2]);
            }
        })
    }

    pub(super) fn row(&self, y: usize) -> &[f32] {
        &self.values[y * self.width..(y + 1) * self.width]
    }

    /// Returns the plane at half the size, without the last row or column of an odd one. Pixels are weighted by 1, 3, 3
    /// and 1 on each axis: a mean of two by two lets through what then moves in jumps.
    pub(super) fn halved(&self) -> Result<Self> {
        let across = Self::of_rows(self.width / 2, self.height, |y, row| {
            let from = self.row(y);
            for (x, value) in row.iter_mut().enumerate() {
                let [before, after] = [(2 * x).saturating_sub(1), (2 * x + 2).min(self.width - 1)];
                *value = (from[before] + 3.0 * (from[2 * x] + from[2 * x + 1]) + from[after]) / 8.0;
            }
        })?;
        Self::of_rows(self.width / 2, self.height / 2, |y, row| {
            let [before, after] = [(2 * y).saturating_sub(1), (2 * y + 2).min(self.height - 1)];
            let rows = [before, 2 * y, 2 * y + 1, after].map(|y| across.row(y));
            for (x, value) in row.iter_mut().enumerate() {
                *value = (rows[0][x] + 3.0 * (rows[1][x] + rows[2][x]) + rows[3][x]) / 8.0;
            }
        })
    }

    /// Returns the plane blurred by 1, 2 and 1 on each axis.
    pub(super) fn blurred(&self) -> Result<Self> {
        let around = |at: usize, side: usize| [at.saturating_sub(1), at, (at + 1).min(side - 1)];
        let across = Self::of_rows(self.width, self.height, |y, row| {
            let from = self.row(y);
            for (x, value) in row.iter_mut().enumerate() {
                let [before, at, after] = around(x, self.width);
                *value = (from[before] + 2.0 * from[at] + from[after]) / 4.0;
            }
        })?;
        Self::of_rows(self.width, self.height, |y, row| {
            let rows = around(y, self.height).map(|y| across.row(y));
            for (x, value) in row.iter_mut().enumerate() {
                *value = (rows[0][x] + 2.0 * rows[1][x] + rows[2][x]) / 4.0;
            }
        })
    }

    /// Returns the plane without its means over `2 radius + 1` pixels on each axis, fewer at the edges: without
    /// brightness and shadows, which an edit changes and in which everything looks alike.
    pub(super) fn texture(&self, radius: usize) -> Result<Self> {
        let window = |at: usize, side: usize| at.saturating_sub(radius)..(at + radius + 1).min(side);
        let across = Self::of_rows(self.width, self.height, |y, row| {
            let from = self.row(y);
            for (x, mean) in row.iter_mut().enumerate() {
                let window = &from[window(x, self.width)];
                *mean = window.iter().sum::<f32>() / window.len() as f32;
            }
        })?;
        Self::of_rows(self.width, self.height, |y, row| {
            let window = window(y, self.height);
            let share = 1.0 / window.len() as f32;
            row.copy_from_slice(self.row(y));
            for y in window {
                for (value, mean) in row.iter_mut().zip(across.row(y)) {
                    *value -= share * mean;
                }
            }
        })
    }
}

/// Pixels that may be compared: 1, or 0 where the edit may have changed the image.
#[derive(Debug, Clone)]
pub(super) struct Kept(Plane);

impl Kept {
    /// Levels of a mask of changes from half up are changes.
    pub(super) fn outside(changed: &GrayImage) -> Result<Self> {
        let (width, height) = (changed.width() as usize, changed.height() as usize);
        Plane::of_rows(width, height, |y, row| {
            for (kept, level) in row.iter_mut().zip(&changed.as_raw()[width * y..]) {
                *kept = f32::from(*level < 128);
            }
        })
        .map(Self)
    }

    /// Returns the mask at half the size: a pixel is kept if all that it was made of are.
    pub(super) fn halved(&self) -> Result<Self> {
        let Self(plane) = self;
        let mut half = plane.halved()?;
        half.values.iter_mut().for_each(|share| *share = share.floor());
        Ok(Self(half))
    }

    pub(super) fn row(&self, y: usize) -> &[f32] {
        self.0.row(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(width: usize, height: usize, value: impl Fn(usize, usize) -> f32 + Sync) -> Plane {
        Plane::of_rows(width, height, |y, row| {
            row.iter_mut().enumerate().for_each(|(x, at)| *at = value(x, y));
        })
        .unwrap()
    }

    #[test]
    fn a_half_lies_where_the_whole_did() {
        // A ramp keeps its values in continuous coordinates: the centre of a half's pixel x is at 2 x + 1.
        let half = plane(21, 16, |x, y| (x as f32 + 0.5) + 10.0 * (y as f32 + 0.5))
            .halved()
            .unwrap();
        assert_eq!((half.width, half.height), (10, 8));
        for y in 1..7 {
            for x in 1..9 {
                assert!((half.row(y)[x] - (2 * x + 1) as f32 - 10.0 * (2 * y + 1) as f32).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn brightness_and_slopes_are_no_texture() {
        let slope = plane(30, 20, |x, y| 100.0 + 3.0 * x as f32 - y as f32)
            .texture(4)
            .unwrap();
        for y in 4..16 {
            assert!(slope.row(y)[4..26].iter().all(|value| value.abs() < 1e-3));
        }
        let flat = plane(30, 20, |_, _| 77.0).texture(4).unwrap();
        assert!(flat.values.iter().all(|value| value.abs() < 1e-4));
    }

    #[test]
    fn a_halved_mask_keeps_only_what_it_was_made_of() {
        let changed = GrayImage::from_fn(16, 16, |x, y| image::Luma([if x == 8 && y == 8 { 255 } else { 0 }]));
        let half = Kept::outside(&changed).unwrap().halved().unwrap();
        let lost: Vec<_> = (0..64)
            .filter(|at| half.row(at / 8)[at % 8] == 0.0)
            .map(|at| (at % 8, at / 8))
            .collect();
        assert_eq!(lost, [(3, 3), (4, 3), (3, 4), (4, 4)]);
    }
}
