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

use crate::{Error, Result};

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
/// [`Error::InvalidArgument`] if a size is zero.
pub fn resize(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    if [width, height, image.width(), image.height()].contains(&0) {
        let got = format!("{}x{} to {width}x{height}", image.width(), image.height());
        return Err(Error::invalid(
            "image size",
            "a width and a height of at least 1 pixel",
            got,
        ));
    }
    let (from, to) = (
        [image.width() as usize, image.height() as usize],
        [width as usize, height as usize],
    );
    let rows = image.as_raw();
    let rows = if vertical_first(from, to) {
        horizontal(&vertical(rows, from[0], from[1], to[1]), from[0], to[0])
    } else {
        vertical(&horizontal(rows, from[0], to[0]), to[0], from[1], to[1])
    };
    RgbImage::from_raw(width, height, rows).ok_or_else(|| Error::bug("a resized image with missing pixels"))
}

/// Returns `true` if the vertical pass comes first. Since version 13, Pillow starts with the height if it
/// shrinks much more than the width. The order is visible, because the intermediate image has 8 bits.
fn vertical_first([width, height]: [usize; 2], [to_width, to_height]: [usize; 2]) -> bool {
    to_height < height && height - to_height > 2 * width.saturating_sub(to_width)
}

/// Input positions of one output position, and their coefficients.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(input: usize, output: usize) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = LOBES * stretch;
    let taps_at = |position: usize| {
        let center = (position as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let last = ((center + support + 0.5) as usize).min(input);
        let weights: Vec<f64> = (first..last)
            .map(|x| lanczos((x as f64 - center + 0.5) / stretch))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| (w / sum * f64::from(1 << PRECISION)).round() as i32;
        Taps {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (0..output).map(taps_at).collect()
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

fn horizontal(rows: &[u8], input: usize, output: usize) -> Vec<u8> {
    if input == output {
        return rows.to_vec();
    }
    let taps = taps(input, output);
    let mut result = vec![0; rows.len() / input * output];
    let pairs = result
        .par_chunks_exact_mut(output * CHANNELS)
        .zip(rows.par_chunks_exact(input * CHANNELS));
    pairs.for_each(|(target, source)| {
        for (pixel, tap) in target.chunks_exact_mut(CHANNELS).zip(&taps) {
            let mut sums = [HALF; CHANNELS];
            for (source, weight) in source.chunks_exact(CHANNELS).skip(tap.first).zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(source) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (value, sum) in pixel.iter_mut().zip(sums) {
                *value = level(sum);
            }
        }
    });
    result
}

fn vertical(rows: &[u8], width: usize, input: usize, output: usize) -> Vec<u8> {
    if input == output {
        return rows.to_vec();
    }
    let taps = taps(input, output);
    let stride = width * CHANNELS;
    let mut result = vec![0; stride * output];
    result
        .par_chunks_exact_mut(stride)
        .zip(&taps)
        .for_each(|(target, tap)| {
            let mut sums = vec![HALF; stride];
            for (source, weight) in rows.chunks_exact(stride).skip(tap.first).zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(source) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (value, sum) in target.iter_mut().zip(sums) {
                *value = level(sum);
            }
        });
    result
}
