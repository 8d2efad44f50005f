//! Turned and mirrored images.

use image::RgbImage;
use rayon::prelude::*;

use crate::{Error, Result, buffer};

/// Red, green and blue.
const CHANNELS: usize = 3;
/// Rows that are made together of columns: as many pixels of a source row lie together in the cache.
const BAND: usize = 32;

/// Orientation of an image: turned by quarters, it or its mirror image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Orientation {
    /// The image as it is.
    None,
    /// Left and right exchanged.
    Mirror,
    /// By two quarters.
    Half,
    /// Top and bottom exchanged.
    Flip,
    /// Rows and columns exchanged.
    Transpose,
    /// By a quarter, clockwise.
    Right,
    /// Rows and columns exchanged, from the other corner.
    Transverse,
    /// By a quarter, counterclockwise.
    Left,
}

impl Orientation {
    /// Returns the orientation of EXIF's number.
    pub(super) fn of_exif(orientation: u32) -> Self {
        match orientation {
            2 => Self::Mirror,
            3 => Self::Half,
            4 => Self::Flip,
            5 => Self::Transpose,
            6 => Self::Right,
            7 => Self::Transverse,
            8 => Self::Left,
            _ => Self::None,
        }
    }

    /// Returns `true` if the turned image is as wide as the image is high.
    pub(super) fn exchanges_sides(self) -> bool {
        matches!(self, Self::Transpose | Self::Right | Self::Transverse | Self::Left)
    }

    /// Turns an image; in place where its size stays.
    pub(super) fn apply(self, mut image: RgbImage) -> Result<RgbImage> {
        match self {
            Self::None => {}
            Self::Mirror => rows(&mut image).for_each(reverse),
            Self::Half => {
                reverse(image.as_flat_samples_mut().samples);
            }
            Self::Flip => flip(&mut image),
            Self::Transpose => return exchanged(&image, false, false),
            Self::Right => return exchanged(&image, true, false),
            Self::Transverse => return exchanged(&image, true, true),
            Self::Left => return exchanged(&image, false, true),
        }
        Ok(image)
    }
}

/// Returns the rows of an image.
fn rows(image: &mut RgbImage) -> rayon::slice::ChunksExactMut<'_, u8> {
    let stride = image.width().max(1) as usize * CHANNELS;
    image.as_flat_samples_mut().samples.par_chunks_exact_mut(stride)
}

/// Reverses the order of pixels.
fn reverse(pixels: &mut [u8]) {
    pixels.as_chunks_mut::<CHANNELS>().0.reverse();
}

/// Reverses the order of rows.
fn flip(image: &mut RgbImage) {
    let stride = image.width().max(1) as usize * CHANNELS;
    let samples = image.as_flat_samples_mut().samples;
    let half = samples.len() / stride / 2 * stride;
    let (top, rest) = samples.split_at_mut(half);
    let bottom = rest.rchunks_exact_mut(stride);
    top.chunks_exact_mut(stride)
        .zip(bottom)
        .for_each(|(a, b)| a.swap_with_slice(b));
}

/// Exchanges rows and columns; `up` reads the columns from the bottom, `from_right` begins with the last column.
fn exchanged(image: &RgbImage, up: bool, from_right: bool) -> Result<RgbImage> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let source = image.as_raw().as_chunks::<CHANNELS>().0;
    let mut turned = buffer::filled(0_u8, source.len() * CHANNELS, "the turned image")?;
    let bands = turned
        .as_chunks_mut::<CHANNELS>()
        .0
        .par_chunks_mut(BAND * height.max(1));
    bands.enumerate().for_each(|(band, target)| {
        let first = band * BAND;
        for place in 0..height {
            let row = if up { height - 1 - place } else { place };
            let row = &source[row * width..][..width];
            for (line, target) in target.chunks_exact_mut(height).enumerate() {
                let column = first + line;
                target[place] = row[if from_right { width - 1 - column } else { column }];
            }
        }
    });
    let missing = || Error::bug("a turned image with missing pixels");
    RgbImage::from_raw(image.height(), image.width(), turned).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use image::imageops;

    use super::*;

    #[test]
    fn every_turn_moves_each_pixel_as_the_image_crate_does() {
        // Wider than a band, and of odd sizes.
        for (width, height) in [(71, 5), (4, 67), (33, 33), (1, 1)] {
            let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
            let transposed = imageops::rotate90(&imageops::flip_vertical(&image));
            let expected = [
                image.clone(),
                imageops::flip_horizontal(&image),
                imageops::rotate180(&image),
                imageops::flip_vertical(&image),
                transposed.clone(),
                imageops::rotate90(&image),
                imageops::rotate180(&transposed),
                imageops::rotate270(&image),
            ];
            for (orientation, expected) in (1..).zip(expected) {
                let turned = Orientation::of_exif(orientation).apply(image.clone()).unwrap();
                assert!(turned == expected, "{width}x{height} by {orientation}");
            }
        }
        for orientation in [0, 9, u32::MAX] {
            assert_eq!(Orientation::of_exif(orientation), Orientation::None);
        }
    }
}
