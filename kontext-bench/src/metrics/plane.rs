//! Image levels as numbers that can be filtered.

use image::RgbImage;
use rayon::prelude::*;

use super::CHANNELS;

/// Weights of red, green and blue in scikit-image's `rgb2gray`.
const LUMA: [f64; CHANNELS] = [0.2125, 0.7154, 0.0721];

/// Rows of pixels with interleaved channels, in levels from 0 to 255.
#[derive(Debug, Clone)]
pub(super) struct Plane {
    pub(super) values: Vec<f64>,
    pub(super) width: usize,
    pub(super) channels: usize,
}

impl Plane {
    /// Converts all three channels.
    pub(super) fn colour(image: &RgbImage) -> Self {
        let values = image.as_raw().iter().map(|level| f64::from(*level)).collect();
        Self {
            values,
            width: image.width() as usize,
            channels: CHANNELS,
        }
    }

    /// Computes `0.2125 R + 0.7154 G + 0.0721 B`, as `skimage.color.rgb2gray` does.
    pub(super) fn luma(image: &RgbImage) -> Self {
        let luma = |rgb: &[u8]| {
            rgb.iter()
                .zip(LUMA)
                .map(|(level, weight)| weight * f64::from(*level))
                .sum()
        };
        let values = image.as_raw().par_chunks_exact(CHANNELS).map(luma).collect();
        Self {
            values,
            width: image.width() as usize,
            channels: 1,
        }
    }

    /// Returns the number of values in a row.
    pub(super) fn stride(&self) -> usize {
        self.width * self.channels
    }

    pub(super) fn height(&self) -> usize {
        self.values.len() / self.stride().max(1)
    }

    pub(super) fn row(&self, y: usize) -> &[f64] {
        self.values
            .get(y * self.stride()..(y + 1) * self.stride())
            .unwrap_or_default()
    }

    /// Creates a plane of the same size, row by row on all cores.
    pub(super) fn by_rows(&self, row: impl Fn(usize, &mut [f64]) + Sync) -> Self {
        let mut values = vec![0.0; self.values.len()];
        values
            .par_chunks_mut(self.stride().max(1))
            .enumerate()
            .for_each(|(y, out)| row(y, out));
        Self {
            values,
            width: self.width,
            channels: self.channels,
        }
    }
}
