//! Lanczos resizing of 8-bit images, equal to Pillow's to the last level.
//!
//! The published crates agree with Pillow only to about one level in four (they keep 14 bits of a
//! coefficient, Pillow 22), and one level of a reference image is visible in bf16 latents, so the two passes
//! are implemented here.
//!
//! Source: python-pillow/Pillow 13.0 `src/libImaging/Resample.c` (`precompute_coeffs`,
//! `normalize_coeffs_8bpc`, `ImagingResampleHorizontal_8bpc`, `ImagingResampleVertical_8bpc`).

use std::f64::consts::PI;

use image::RgbImage;
use rayon::prelude::*;

use crate::{Error, Result, buffer, threads};

/// Lobes of the filter on each side.
const LOBES: f64 = 3.0;
/// Fractional bits of a coefficient: 32 minus 8 for the level and 2 of headroom for overshoot.
const PRECISION: u32 = 22;
/// Red, green and blue.
const CHANNELS: usize = 3;

/// Resizes with a Lanczos filter of three lobes, equal to the last level to Pillow's `Image.resize((width,
/// height), Image.LANCZOS)` on 8-bit RGB. The aspect ratio is not preserved.
///
/// # Errors
/// [`Error::InvalidArgument`] if a size is zero, [`Error::Allocation`] and [`Error::Thread`] if the system refuses
/// memory ([`resize_bytes`]) or threads.
pub fn resize(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    if [width, height, image.width(), image.height()].contains(&0) {
        let got = format!("{}x{} to {width}x{height}", image.width(), image.height());
        return Err(Error::invalid(
            "image size",
            "a width and a height of at least 1 pixel",
            got,
        ));
    }
    let [result, rest] = resize_bytes([image.width(), image.height()], [width, height]);
    buffer::can_have(result.saturating_add(rest), RESULT)?;
    threads::start()?;
    let (from, to) = (
        [image.width() as usize, image.height() as usize],
        [width as usize, height as usize],
    );
    let rows = image.as_raw();
    let (first, second) = if vertical_first(from, to) {
        let first = vertical(rows, from[0], from[1], to[1])?;
        let second = horizontal(first.as_deref().unwrap_or(rows), from[0], to[0])?;
        (first, second)
    } else {
        let first = horizontal(rows, from[0], to[0])?;
        let second = vertical(first.as_deref().unwrap_or(rows), to[0], from[1], to[1])?;
        (first, second)
    };
    let rows = match second.or(first) {
        Some(rows) => rows,
        None => buffer::copied(rows, RESULT)?,
    };
    RgbImage::from_raw(width, height, rows).ok_or_else(|| Error::bug("a resized image with missing pixels"))
}

/// The memory of a result, in messages.
const RESULT: &str = "the resized image";

/// Returns the bytes that [`resize`] takes between two sizes of [width, height]: its result, and next to it the image
/// between its two passes and the coefficients.
///
/// # Example
/// ```
/// let [result, rest] = kontext_core::images::resize_bytes([8000, 8000], [64, 64]);
/// assert_eq!(result, 64 * 64 * 3);
/// assert!(rest > 64 * 8000 * 3 && rest < 2_000_000); // reduced in width, not yet in height
/// ```
#[must_use]
pub fn resize_bytes(from: [u32; 2], to: [u32; 2]) -> [u64; 2] {
    let image = |width: u32, height: u32| (u64::from(width) * u64::from(height)).saturating_mul(CHANNELS as u64);
    let between = match (from[0] == to[0], from[1] == to[1]) {
        (false, false) if vertical_first(from.map(|side| side as usize), to.map(|side| side as usize)) => {
            image(from[0], to[1])
        }
        (false, false) => image(to[0], from[1]),
        _ => 0,
    };
    // An output position has a coefficient for each input position within three lobes, on both sides.
    let taps = |side: usize| {
        let is_resized = from[side] != to[side];
        u64::from(is_resized) * 4 * (2.0 * LOBES) as u64 * u64::from(from[side].max(to[side]))
    };
    [image(to[0], to[1]), between.saturating_add(taps(0).max(taps(1)))]
}

/// Returns `true` if the vertical pass comes first. Since version 13, Pillow starts with the height if it
/// shrinks much more than the width. The order is visible, because the intermediate image has 8 bits.
fn vertical_first([width, height]: [usize; 2], [to_width, to_height]: [usize; 2]) -> bool {
    to_height < height && height - to_height > 2 * width.saturating_sub(to_width)
}

/// Input positions of each output position, and their coefficients.
struct Taps {
    /// The first input position, and the end of the coefficients in `weights`.
    positions: Vec<(usize, usize)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(input: usize, output: usize) -> Result<Self> {
        const PURPOSE: &str = "the coefficients of a resized image";
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = LOBES * stretch;
        let inputs = |position: usize| {
            let center = (position as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(input);
            (center, first..last)
        };
        let mut weights = buffer::with_room((0..output).map(|position| inputs(position).1.len()).sum(), PURPOSE)?;
        let mut positions = buffer::with_room(output, PURPOSE)?;
        for position in 0..output {
            let (center, inputs) = inputs(position);
            let weight = |x: usize| lanczos((x as f64 - center + 0.5) / stretch);
            let sum: f64 = inputs.clone().map(weight).sum();
            let fixed = |x: usize| (weight(x) / sum * f64::from(1 << PRECISION)).round() as i32;
            weights.extend(inputs.clone().map(fixed));
            positions.push((inputs.start, weights.len()));
        }
        Ok(Self { positions, weights })
    }

    /// Returns the first input position and the coefficients of each output position.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        (0..self.positions.len()).map(|position| self.at(position))
    }

    fn at(&self, position: usize) -> (usize, &[i32]) {
        let start = position.checked_sub(1).map_or(0, |before| self.positions[before].1);
        let (first, end) = self.positions[position];
        (first, &self.weights[start..end])
    }
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-LOBES..LOBES).contains(&x) {
        sinc(x) * sinc(x / LOBES)
    } else {
        0.0
    }
}

/// Rounds a fixed-point sum to a level.
fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Initial value of a sum, one half, so that the shift rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// Resizes all rows; `None` if their width stays.
fn horizontal(rows: &[u8], input: usize, output: usize) -> Result<Option<Vec<u8>>> {
    if input == output {
        return Ok(None);
    }
    let taps = Taps::new(input, output)?;
    let mut result = buffer::filled(0, rows.len() / input * output, RESULT)?;
    let pairs = result
        .par_chunks_exact_mut(output * CHANNELS)
        .zip(rows.par_chunks_exact(input * CHANNELS));
    pairs.for_each(|(target, source)| {
        for (pixel, (first, weights)) in target.chunks_exact_mut(CHANNELS).zip(taps.iter()) {
            let mut sums = [HALF; CHANNELS];
            for (source, weight) in source.chunks_exact(CHANNELS).skip(first).zip(weights) {
                for (sum, value) in sums.iter_mut().zip(source) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (value, sum) in pixel.iter_mut().zip(sums) {
                *value = level(sum);
            }
        }
    });
    Ok(Some(result))
}

/// Values of a row that are summed together.
const STRIP: usize = 4096;

/// Resizes all columns; `None` if their height stays.
fn vertical(rows: &[u8], width: usize, input: usize, output: usize) -> Result<Option<Vec<u8>>> {
    if input == output {
        return Ok(None);
    }
    let taps = Taps::new(input, output)?;
    let stride = width * CHANNELS;
    let mut result = buffer::filled(0, stride * output, RESULT)?;
    let targets = result.par_chunks_exact_mut(stride).enumerate();
    targets.for_each(|(position, target)| {
        let (first, weights) = taps.at(position);
        for (strip, target) in target.chunks_mut(STRIP).enumerate() {
            let start = strip * STRIP;
            let mut sums = [HALF; STRIP];
            for (source, weight) in rows.chunks_exact(stride).skip(first).zip(weights) {
                for (sum, value) in sums.iter_mut().zip(&source[start..start + target.len()]) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (value, sum) in target.iter_mut().zip(sums) {
                *value = level(sum);
            }
        }
    });
    Ok(Some(result))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_no_machine_has_is_an_error_and_not_an_abort() {
        let image = RgbImage::new(1, 1);
        let error = resize(&image, u32::MAX, u32::MAX).unwrap_err();
        assert!(matches!(error, Error::Allocation { .. }), "{error}");
    }

    #[test]
    fn the_bytes_are_those_of_the_passes() {
        let pixels = |width: u64, height: u64| 3 * width * height;
        // The height shrinks more: the first pass leaves 100 x 10.
        assert_eq!(
            resize_bytes([100, 200], [50, 10]),
            [pixels(50, 10), pixels(100, 10) + 24 * 200]
        );
        assert_eq!(
            resize_bytes([100, 90], [50, 80]),
            [pixels(50, 80), pixels(50, 90) + 24 * 100]
        );
        // One pass, and none.
        assert_eq!(resize_bytes([100, 90], [100, 180]), [pixels(100, 180), 24 * 180]);
        assert_eq!(resize_bytes([7, 5], [7, 5]), [pixels(7, 5), 0]);
    }

    #[test]
    fn an_image_of_the_wanted_size_is_copied() {
        let image = RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, y as u8, 9]));
        assert_eq!(resize(&image, 3, 2).unwrap(), image);
    }

    #[test]
    fn rows_longer_than_a_strip_are_resized_like_short_ones() {
        // All columns are equal, so a wide image has the columns of a narrow one.
        let column = |y: u32| image::Rgb([(y * 7) as u8, (y * y) as u8, 255 - y as u8]);
        let [wide, narrow] = [2 * STRIP as u32, 2].map(|width| RgbImage::from_fn(width, 30, |_, y| column(y)));
        let (wide, narrow) = (
            resize(&wide, wide.width(), 11).unwrap(),
            resize(&narrow, 2, 11).unwrap(),
        );
        assert!(
            wide.enumerate_pixels()
                .all(|(_, y, pixel)| pixel == narrow.get_pixel(0, y))
        );
    }
}
