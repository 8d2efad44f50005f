//! Lanczos resizing of 8-bit images, equal to Pillow's to the last level.
//!
//! The published crates agree with Pillow only to about one level in four (they keep 14 bits of a
//! coefficient, Pillow 22), and one level of a reference image is visible in bf16 latents, so the two passes
//! are implemented here.
//!
//! Source: python-pillow/Pillow 13.0 `src/libImaging/Resample.c` (`precompute_coeffs`,
//! `normalize_coeffs_8bpc`, `ImagingResampleHorizontal_8bpc`, `ImagingResampleVertical_8bpc`).

mod taps;

use image::RgbImage;
use rayon::prelude::*;

use self::taps::{Axis, LOBES, PRECISION, Taps};
use crate::{Error, Result, buffer, threads};

/// Red, green and blue.
const CHANNELS: usize = 3;

/// Resizes with a Lanczos filter of three lobes, equal to the last level to Pillow's `Image.resize((width,
/// height), Image.LANCZOS)` on 8-bit RGB. The aspect ratio is not preserved.
///
/// # Errors
/// [`Error::InvalidArgument`] if a size is zero, [`Error::Allocation`] and [`Error::Thread`] if the system refuses
/// memory ([`resize_bytes`]) or threads.
pub fn resize(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let whole = [0.0, 0.0, f64::from(image.width()), f64::from(image.height())];
    resize_box(image, whole, width, height)
}

/// Resizes a part of an image, `[left, top, right, bottom]` in its pixels and fractions of them, as [`resize`] does the
/// whole: equal to the last level to Pillow's `Image.resize((width, height), Image.LANCZOS, box=…)`, which computes
/// with a box in f32 and reads pixels outside it, too.
///
/// A box may stick out of the image, which Pillow refuses: a position of the result outside the image takes the value
/// on the image's edge, at its nearest point.
///
/// # Errors
/// [`Error::InvalidArgument`] if a size is zero, or the box is not finite, is empty or has no part of the image;
/// otherwise those of [`resize`].
///
/// # Example
/// ```
/// use kontext_core::images::resize_box;
/// let image = image::RgbImage::from_fn(6, 4, |x, _| image::Rgb([40 * x as u8; 3]));
/// // Three columns to the right, of which one is outside.
/// let moved = resize_box(&image, [1.0, 0.0, 7.0, 4.0], 6, 4)?;
/// assert_eq!(moved.get_pixel(0, 0), image.get_pixel(1, 0));
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn resize_box(image: &RgbImage, source_box: [f64; 4], width: u32, height: u32) -> Result<RgbImage> {
    if [width, height, image.width(), image.height()].contains(&0) {
        let got = format!("{}x{} to {width}x{height}", image.width(), image.height());
        return Err(Error::invalid(
            "image size",
            "a width and a height of at least 1 pixel",
            got,
        ));
    }
    let [left, top, right, bottom] = source_box.map(|side| side as f32);
    let across = Axis::new(image.width(), [left, right], width);
    let down = Axis::new(image.height(), [top, bottom], height);
    if !(across.has_part() && down.has_part()) {
        let expected = format!(
            "[left, top, right, bottom] with a part of the image's {}x{} pixels",
            image.width(),
            image.height()
        );
        return Err(Error::invalid("source box", &expected, format!("{source_box:?}")));
    }
    let [result, rest] = bytes(&across, &down);
    buffer::can_have(result.saturating_add(rest), RESULT)?;
    threads::start()?;
    let rows = image.as_raw();
    let (first, second) = if vertical_first(&across, &down) {
        let first = vertical(rows, across.input, &down)?;
        let second = horizontal(first.as_deref().unwrap_or(rows), &across)?;
        (first, second)
    } else {
        let first = horizontal(rows, &across)?;
        let second = vertical(first.as_deref().unwrap_or(rows), across.output, &down)?;
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
    let [across, down] = [0, 1].map(|side| Axis::new(from[side], [0.0, from[side] as f32], to[side]));
    bytes(&across, &down)
}

/// Returns the bytes of the result, and of the image between the passes with the coefficients.
fn bytes(across: &Axis, down: &Axis) -> [u64; 2] {
    let image = |width: usize, height: usize| (width as u64 * height as u64).saturating_mul(CHANNELS as u64);
    let between = match (across.is_kept(), down.is_kept()) {
        (false, false) if vertical_first(across, down) => image(across.input, down.output),
        (false, false) => image(across.output, down.input),
        _ => 0,
    };
    // An output position has a coefficient for each input position within three lobes, on both sides.
    let taps = |axis: &Axis| u64::from(!axis.is_kept()) * 4 * (2.0 * LOBES) as u64 * axis.input.max(axis.output) as u64;
    [
        image(across.output, down.output),
        between.saturating_add(taps(across).max(taps(down))),
    ]
}

/// Returns `true` if the vertical pass comes first. Since version 13, Pillow starts with the height if it
/// shrinks much more than the width, by the sizes of the whole image. The order is visible, because the intermediate
/// image has 8 bits.
fn vertical_first(across: &Axis, down: &Axis) -> bool {
    down.output < down.input && down.input - down.output > 2 * across.input.saturating_sub(across.output)
}

/// Rounds a fixed-point sum to a level.
fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Initial value of a sum, one half, so that the shift rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// Resizes all rows; `None` if they stay.
fn horizontal(rows: &[u8], axis: &Axis) -> Result<Option<Vec<u8>>> {
    if axis.is_kept() {
        return Ok(None);
    }
    let taps = Taps::new(axis)?;
    let (input, output) = (axis.input, axis.output);
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

/// Resizes all columns; `None` if they stay.
fn vertical(rows: &[u8], width: usize, axis: &Axis) -> Result<Option<Vec<u8>>> {
    if axis.is_kept() {
        return Ok(None);
    }
    let taps = Taps::new(axis)?;
    let stride = width * CHANNELS;
    let mut result = buffer::filled(0, stride * axis.output, RESULT)?;
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
    fn a_box_of_whole_pixels_in_a_size_of_its_own_is_a_crop() {
        let image = noise(13, 11);
        let crop = image::imageops::crop_imm(&image, 2, 3, 7, 5).to_image();
        assert_eq!(resize_box(&image, [2.0, 3.0, 9.0, 8.0], 7, 5).unwrap(), crop);
    }

    #[test]
    fn a_position_outside_the_image_takes_its_edge() {
        let image = noise(9, 8);
        let moved = resize_box(&image, [-3.0, 2.0, 6.0, 10.0], 9, 8).unwrap();
        // A box of whole pixels moves those inside unchanged.
        for (x, y) in (3..9).flat_map(|x| (0..6).map(move |y| (x, y))) {
            assert_eq!(moved.get_pixel(x, y), image.get_pixel(x - 3, y + 2), "{x} {y}");
        }
        // The value at the very edge lies half a pixel outside the last centre.
        assert!((0..8).all(|y| (0..2).all(|x| moved.get_pixel(x, y) == moved.get_pixel(2, y))));
        assert!((0..9).all(|x| moved.get_pixel(x, 7) == moved.get_pixel(x, 6)));
        // Far outside as well: no sum of coefficients comes near zero.
        let flat = RgbImage::from_pixel(5, 5, image::Rgb([10, 128, 250]));
        let far = resize_box(&flat, [-40.25, -0.7, 4.9, 60.0], 50, 70).unwrap();
        assert!(far.pixels().all(|pixel| *pixel == image::Rgb([10, 128, 250])));
    }

    #[test]
    fn a_box_without_a_part_of_the_image_is_refused() {
        let image = noise(9, 8);
        for source_box in [
            [9.0, 0.0, 12.0, 8.0],
            [-4.0, 0.0, 0.0, 8.0],
            [0.0, 8.0, 9.0, 9.0],
            [5.0, 0.0, 5.0, 8.0],
            [6.0, 0.0, 5.0, 8.0],
            [0.0, f64::NAN, 9.0, 8.0],
            [0.0, 0.0, f64::INFINITY, 8.0],
            [0.0, -1e300, 9.0, 8.0],
        ] {
            let error = resize_box(&image, source_box, 9, 8).unwrap_err();
            assert!(
                error.to_string().contains("a part of the image's 9x8 pixels"),
                "{error}"
            );
        }
    }

    fn noise(width: u32, height: u32) -> RgbImage {
        let level = |x: u32, y: u32, channel: u32| {
            let hash = (x * 73 + y * 179 + channel * 283 + 17).wrapping_mul(2_654_435_761);
            (hash >> 24) as u8
        };
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([0, 1, 2].map(|channel| level(x, y, channel)))
        })
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
