//! Extent of an edit, and preservation of the rest of the image.

use image::{GrayImage, Luma, RgbImage};
use kontext_core::{Error, Result, threads};
use rayon::prelude::*;

use super::plane::Plane;
use super::windows::{RADIUS, WINDOW, gaussian, rows_of_windows};
use super::{CHANNELS, LEAST_SHARE, psnr_where, same_size, size};

/// Levels that a smoothed difference must exceed to count as a change.
///
/// On five Kodak images, encoded and decoded but not edited, 0.1 % and 0.8 % of the pixels exceed it with the
/// tiny autoencoders of SD3 and FLUX.1, and 6 % with that of SD 1.5; at half the threshold it would be 6 %,
/// 23 % and 37 %. A full autoencoder has smaller errors.
pub const DEFAULT_THRESHOLD: f64 = 16.0;

/// Lowest level of a given mask that counts as changed: the upper half of the levels.
const MIDDLE: u8 = 128;
/// Level of a changed pixel in a mask.
const CHANGED: u8 = 255;

/// A source, an edited result, and a map of the pixels that the edit changed.
///
/// Both images have the size of the original source. If a model works at another size, resize its result
/// first (`kontext_core::images::resize`); kontext's pipeline already does.
///
/// # Example
/// ```
/// use image::{Rgb, RgbImage};
/// use kontext_bench::metrics::{ChangeMap, DEFAULT_THRESHOLD};
/// let source = RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8 * 3, y as u8 * 3, 90]));
/// let mut result = source.clone();
/// for (x, y) in (0..16 * 16).map(|n| (n % 16, n / 16)) {
///     result.put_pixel(x, y, Rgb([255, 255, 255]));
/// }
/// let change = ChangeMap::between(&source, &result, DEFAULT_THRESHOLD)?;
/// assert!((0.0625..0.09).contains(&change.magnitude().share));      // 1/16, and what the smoothing adds
/// assert_eq!(change.preservation_psnr(), Some(f64::INFINITY));
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChangeMap<'a> {
    source: &'a RgbImage,
    result: &'a RgbImage,
    changed: GrayImage,
}

/// Magnitude of an edit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Magnitude {
    /// Share of the image that changed, from 0 to 1.
    pub share: f64,
    /// Mean absolute difference over all pixels and channels, in levels from 0 to 255.
    pub mean_difference: f64,
    /// Mean absolute difference over the changed pixels only; 0 if there are none.
    pub changed_difference: f64,
}

impl<'a> ChangeMap<'a> {
    /// Finds the changed pixels: those for which the difference of a channel, smoothed by a gaussian with a
    /// standard deviation of 1.5 pixels, exceeds `threshold` levels ([`DEFAULT_THRESHOLD`] is a good one).
    ///
    /// An autoencoder changes every pixel slightly, with alternating signs; smoothing removes such noise and
    /// leaves differences over an area. The smoothing is
    /// `scipy.ndimage.gaussian_filter(difference, 1.5, truncate=3.5)`.
    ///
    /// Pixels below the threshold count as untouched, so the error outside the map is bounded by
    /// construction. If the region that an edit may change is known, [`ChangeMap::given`] is the stricter
    /// test.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the images differ in size, or the threshold is negative or NaN.
    pub fn between(source: &'a RgbImage, result: &'a RgbImage, threshold: f64) -> Result<Self> {
        same_size_as_source(source, result)?;
        threads::start()?;
        if threshold.is_nan() || threshold < 0.0 {
            return Err(Error::invalid("threshold", "levels from 0 to 255", threshold));
        }
        let smoothed = smoothed(&difference(source, result));
        let changed = |rgb: &[f64]| rgb.iter().any(|value| value.abs() > threshold);
        let map = smoothed
            .values
            .par_chunks_exact(CHANNELS)
            .map(|rgb| if changed(rgb) { CHANGED } else { 0 });
        let map = GrayImage::from_raw(source.width(), source.height(), map.collect());
        Ok(Self {
            source,
            result,
            changed: map.unwrap_or_default(),
        })
    }

    /// Takes the changed pixels from a mask: those with a level of 128 or more.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the three sizes differ.
    pub fn given(source: &'a RgbImage, result: &'a RgbImage, mask: &GrayImage) -> Result<Self> {
        same_size_as_source(source, result)?;
        threads::start()?;
        if mask.dimensions() != source.dimensions() {
            let got = format!("{}x{}", mask.width(), mask.height());
            return Err(Error::invalid(
                "mask",
                format!("the source's size, {}", size(source)),
                got,
            ));
        }
        let changed = GrayImage::from_fn(mask.width(), mask.height(), |x, y| {
            Luma([if mask.get_pixel(x, y).0 >= [MIDDLE] { CHANGED } else { 0 }])
        });
        Ok(Self {
            source,
            result,
            changed,
        })
    }

    /// Returns the changed pixels as an image: 255 if changed, else 0.
    #[must_use]
    pub fn mask(&self) -> &GrayImage {
        &self.changed
    }

    /// Computes the magnitude of the edit.
    #[must_use]
    pub fn magnitude(&self) -> Magnitude {
        let (mut all, mut inside, mut count) = (0_u64, 0_u64, 0_u64);
        let pairs = self
            .source
            .as_raw()
            .chunks_exact(CHANNELS)
            .zip(self.result.as_raw().chunks_exact(CHANNELS));
        for ((a, b), changed) in pairs.zip(self.changed.as_raw()) {
            let difference: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            all += difference;
            if *changed != 0 {
                inside += difference;
                count += 1;
            }
        }
        let mean = |sum: u64, pixels: u64| sum as f64 / (pixels.max(1) * CHANNELS as u64) as f64;
        let pixels = self.changed.as_raw().len() as u64;
        Magnitude {
            share: count as f64 / pixels.max(1) as f64,
            mean_difference: mean(all, pixels),
            changed_difference: mean(inside, count),
        }
    }

    /// Computes [`crate::metrics::psnr`] over the unchanged pixels, in dB; infinite if they are equal, `None`
    /// if fewer than 2 % of the pixels are left.
    #[must_use]
    pub fn preservation_psnr(&self) -> Option<f64> {
        let changed = self.changed.as_raw();
        psnr_where(self.source, self.result, |pixel| changed.get(pixel) == Some(&0))
    }

    /// Computes [`crate::metrics::ssim`] over the windows without a changed pixel; `None` if fewer than 2 %
    /// of the windows are left, or the image is smaller than one.
    ///
    /// Equal to the mean of scikit-image's map (`structural_similarity(…, full=True)`) over the centres of
    /// those windows, within 1e-6.
    #[must_use]
    pub fn untouched_ssim(&self) -> Option<f64> {
        if (self.source.width().min(self.source.height()) as usize) < WINDOW {
            return None;
        }
        let counts = Counts::new(&self.changed);
        let (a, b) = (Plane::colour(self.source), Plane::colour(self.result));
        let rows = rows_of_windows(&a, &b, |y, windows| {
            let pixels = windows.chunks_exact(CHANNELS).enumerate();
            let kept = pixels.filter(|(x, _)| counts.in_window(*x, y) == 0);
            let (sum, count) = kept.fold((0.0, 0_usize), |(sum, count), (_, rgb)| {
                (
                    sum + rgb.iter().map(|window| window.whole).sum::<f64>(),
                    count + rgb.len(),
                )
            });
            (sum, count, windows.len())
        });
        let add = |(sum, count, all), row: &(f64, usize, usize)| (sum + row.0, count + row.1, all + row.2);
        let (sum, count, all) = rows.iter().fold((0.0, 0, 0), add);
        (count as f64 >= LEAST_SHARE * all as f64).then(|| sum / count as f64)
    }
}

fn same_size_as_source(source: &RgbImage, result: &RgbImage) -> Result<()> {
    same_size(source, result).map_err(|_| {
        let expected = format!("the source's size, {} (resize it first)", size(source));
        Error::invalid("result", expected, size(result))
    })
}

/// Computes result minus source.
fn difference(source: &RgbImage, result: &RgbImage) -> Plane {
    let pairs = source.as_raw().par_iter().zip(result.as_raw());
    let values = pairs.map(|(a, b)| f64::from(*b) - f64::from(*a)).collect();
    Plane {
        values,
        width: source.width() as usize,
        channels: CHANNELS,
    }
}

/// Convolves the plane with the gaussian window, mirrored at its borders.
fn smoothed(plane: &Plane) -> Plane {
    let (kernel, height, channels) = (gaussian(), plane.height(), plane.channels);
    let down = plane.by_rows(|y, out| {
        for (tap, weight) in kernel.iter().enumerate() {
            let row = plane.row(mirrored(y as isize + tap as isize - RADIUS as isize, height));
            out.iter_mut().zip(row).for_each(|(out, value)| *out += weight * value);
        }
    });
    down.by_rows(|y, out| {
        let row = down.row(y);
        for (at, out) in out.iter_mut().enumerate() {
            let (x, channel) = ((at / channels) as isize - RADIUS as isize, at % channels);
            let value = |tap: usize| row.get(mirrored(x + tap as isize, down.width) * channels + channel);
            *out = kernel
                .iter()
                .enumerate()
                .filter_map(|(tap, weight)| Some(weight * value(tap)?))
                .sum();
        }
    })
}

/// Mirrors an index beyond a border, repeating the outermost pixel (scipy's `reflect`).
fn mirrored(index: isize, size: usize) -> usize {
    let period = 2 * size as isize;
    let index = index.rem_euclid(period.max(1));
    (if index < size as isize {
        index
    } else {
        period - 1 - index
    }) as usize
}

/// Summed-area table: numbers of changed pixels above and left of each corner.
struct Counts {
    sums: Vec<u32>,
    stride: usize,
}

impl Counts {
    fn new(mask: &GrayImage) -> Self {
        let (width, height) = (mask.width() as usize, mask.height() as usize);
        let stride = width + 1;
        let mut sums = vec![0_u32; stride * (height + 1)];
        for (y, row) in mask.as_raw().chunks_exact(width.max(1)).enumerate() {
            let (above, below) = sums.split_at_mut((y + 1) * stride);
            let above = above.iter().skip(y * stride + 1);
            let mut count = 0;
            for ((out, above), level) in below.iter_mut().skip(1).zip(above).zip(row) {
                count += u32::from(*level != 0);
                *out = above + count;
            }
        }
        Self { sums, stride }
    }

    /// Returns the number of changed pixels in the window whose first pixel is (x, y).
    fn in_window(&self, x: usize, y: usize) -> u32 {
        let at = |x: usize, y: usize| self.sums.get(y * self.stride + x).copied().unwrap_or_default();
        at(x + WINDOW, y + WINDOW) + at(x, y) - at(x + WINDOW, y) - at(x, y + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn ramp() -> RgbImage {
        RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8 * 5, y as u8 * 5, 90]))
    }

    #[test]
    fn noise_that_goes_up_and_down_is_no_change() {
        let source = ramp();
        let noisy = RgbImage::from_fn(40, 30, |x, y| {
            Rgb(source.get_pixel(x, y).0.map(|level| {
                if (x + y) % 2 == 0 {
                    level + 20
                } else {
                    level.saturating_sub(20)
                }
            }))
        });
        let change = ChangeMap::between(&source, &noisy, 10.0).unwrap();
        assert!(change.magnitude().share < 0.05, "{:?}", change.magnitude());
        assert!(change.magnitude().mean_difference > 15.0);
        assert!(change.preservation_psnr().unwrap() < 30.0);
    }

    #[test]
    fn a_given_mask_says_what_counts() {
        let source = ramp();
        let mut result = source.clone();
        result.put_pixel(3, 4, Rgb([200, 20, 90]));
        let mut mask = GrayImage::new(40, 30);
        let open = ChangeMap::given(&source, &result, &mask).unwrap();
        assert!(open.preservation_psnr().unwrap().is_finite() && open.untouched_ssim().unwrap() < 1.0);
        mask.put_pixel(3, 4, Luma([255]));
        let masked = ChangeMap::given(&source, &result, &mask).unwrap();
        assert_eq!(
            (masked.preservation_psnr(), masked.untouched_ssim()),
            (Some(f64::INFINITY), Some(1.0))
        );
        assert_eq!(masked.magnitude().share, 1.0 / 1200.0);
        let all = GrayImage::from_pixel(40, 30, Luma([200]));
        let none = ChangeMap::given(&source, &result, &all).unwrap();
        assert_eq!((none.preservation_psnr(), none.untouched_ssim()), (None, None));
    }

    #[test]
    fn another_size_is_refused_with_what_to_do() {
        let error = ChangeMap::between(&ramp(), &RgbImage::new(30, 40), 10.0)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "invalid result: expected the source's size, 40x30 (resize it first), got 30x40"
        );
        let error = ChangeMap::given(&ramp(), &ramp(), &GrayImage::new(4, 3))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "invalid mask: expected the source's size, 40x30, got 4x3");
    }
}
