//! Restoring the original pixels that a turn did not change.

use image::{GrayImage, ImageBuffer, Luma, RgbImage, imageops};
use kontext_core::{Error, Result, buffer, range};
use kontext_sampler::Size;
use kontext_sampler::geometry::LARGEST_SIDE;
use serde::{Deserialize, Serialize};

use crate::Plan;
use crate::distance::{falloff, squared_distances};
use crate::mask::check_size;

/// Region that a turn may change. Elsewhere its image has the bytes of the edited image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum KeepUnchanged {
    /// The region changed by the edit, computed from the difference of both images.
    Difference(DifferenceMap),
    /// This mask, of the image's size: 255 may change, 0 is kept, levels between are blended. Read files with
    /// [`open_mask`](crate::io::open_mask), which refuses transparency and applies no colour profile.
    Mask(GrayImage),
}

/// The difference map, with its default settings.
impl Default for KeepUnchanged {
    fn default() -> Self {
        Self::Difference(DifferenceMap::default())
    }
}

/// Settings that turn the difference of two images into a map of changes.
///
/// 1. The difference of a pixel is the maximum over its channels.
/// 2. It is smoothed by a Gaussian.
/// 3. Above the threshold, a pixel counts as changed.
/// 4. Pixels nearer than `grow` to a changed one change with it; from there on the map falls to zero over
///    `feather` pixels.
///
/// Lengths are in pixels at the model's image size, from 0 to 8192, and scale with the returned image.
///
/// # Example
/// ```
/// use kontext::image::{Rgb, RgbImage};
/// use kontext::session::DifferenceMap;
/// let map = DifferenceMap { threshold: 10.0, smooth: 0.0, grow: 1.0, feather: 2.0 };
/// let source = RgbImage::new(9, 1);
/// let mut result = source.clone();
/// result.put_pixel(4, 0, Rgb([0, 200, 0]));
/// assert_eq!(map.map(&source, &result, 1.0)?.into_raw(), [0, 0, 127, 255, 255, 255, 127, 0, 0]);
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::exhaustive_structs)] // Plain data, to be written out whole.
pub struct DifferenceMap {
    /// Smoothed difference, in levels from 0 to 255, above which a pixel counts as changed.
    pub threshold: f32,
    /// Standard deviation of the Gaussian in pixels; 0 disables smoothing. Scaled, it is at most the longer
    /// side of the image; above 32, three box filters approximate the Gaussian.
    pub smooth: f32,
    /// Pixels around a change that may change with it.
    pub grow: f32,
    /// Pixels over which the map falls to zero.
    pub feather: f32,
}

/// On 410 held-out local edits of the small model at 64x64, these settings moved the results closer to the
/// ground truth by 0.79 dB and were more than 0.1 dB worse for 8. Of 560 settings, a threshold of 10 gave
/// 0.39 dB with 4 worse ones, 28 gave 0.91 dB with 21; at 20, growing by a pixel gave 0.67 dB with 8, and no
/// smoothing 0.73 dB with 13.
impl Default for DifferenceMap {
    fn default() -> Self {
        Self {
            threshold: 20.0,
            smooth: 1.0,
            grow: 0.0,
            feather: 2.0,
        }
    }
}

impl DifferenceMap {
    /// Computes the change of each pixel from `source` to `result`, from 0 to 255, with lengths times
    /// `scale`, from 0 to 65536.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for images of different sizes, or numbers out of range.
    pub fn map(&self, source: &RgbImage, result: &RgbImage, scale: f64) -> Result<GrayImage> {
        self.check()?;
        range::within("scale of a difference map", scale, 0.0..=LARGEST_SCALE)?;
        let (width, height) = result.dimensions();
        if source.dimensions() != result.dimensions() {
            let got = format!("{}x{} and {width}x{height}", source.width(), source.height());
            return Err(Error::invalid("images of a difference map", "two of one size", got));
        }
        buffer::can_have(u64::from(width) * u64::from(height) * MAP_BYTES, MAP)?;
        let share = |x: u32, y: u32| {
            let (a, b) = (source.get_pixel(x, y).0, result.get_pixel(x, y).0);
            let most = a.iter().zip(b).map(|(a, b)| a.abs_diff(b)).max().unwrap_or_default();
            Luma([f32::from(most) / LEVELS])
        };
        let difference = ImageBuffer::from_fn(width, height, share);
        let longest = width.max(height) as f32;
        let difference = smoothed(difference, (self.smooth * scale as f32).min(longest));
        let changed: Vec<bool> = difference
            .into_raw()
            .iter()
            .map(|d| d * LEVELS > self.threshold)
            .collect();
        let (grow, feather) = (f64::from(self.grow) * scale, f64::from(self.feather) * scale);
        let level = |squared: f64| (falloff(squared.sqrt() - grow, feather) * f64::from(LEVELS)) as u8;
        let levels = squared_distances(&changed, width as usize)
            .into_iter()
            .map(level)
            .collect();
        let missing = || Error::bug("a difference map with missing pixels");
        GrayImage::from_raw(width, height, levels).ok_or_else(missing)
    }

    pub(crate) fn check(&self) -> Result<()> {
        range::within("threshold", self.threshold, 0.0..=LEVELS)?;
        for (name, length) in [("smooth", self.smooth), ("grow", self.grow), ("feather", self.feather)] {
            range::within(name, length, 0.0..=LARGEST_SIDE as f32)?;
        }
        Ok(())
    }
}

const LEVELS: f32 = 255.0;
/// The memory of a map, in messages.
const MAP: &str = "the map of changes";
/// Bytes a pixel that making a map takes at most, while it smooths: four images of 4 bytes; later, 8 of a distance, and
/// a byte each of the set and of the level.
const MAP_BYTES: u64 = 16;
/// Largest scale of a map: more than from the model's smallest image to the largest one that can be opened.
const LARGEST_SCALE: f64 = 65_536.0;
/// Deviation above which box filters approximate a Gaussian; the time of theirs does not grow with it.
const WIDE: f32 = 32.0;

/// Smooths by a Gaussian of this standard deviation in pixels.
fn smoothed(difference: Difference, deviation: f32) -> Difference {
    if deviation > WIDE {
        imageops::fast_blur(&difference, deviation)
    } else if deviation >= f32::MIN_POSITIVE {
        imageops::blur(&difference, deviation)
    } else {
        difference
    }
}

/// Differences of pixels from 0 to 1.
type Difference = ImageBuffer<Luma<f32>, Vec<f32>>;

impl KeepUnchanged {
    /// Checks that it can be used for this image.
    pub(crate) fn check(&self, image: &RgbImage) -> Result<()> {
        match self {
            Self::Difference(map) => map.check(),
            Self::Mask(mask) => check_size(mask, image.width(), image.height()),
        }
    }

    /// Returns the map of a result; `source` gives the edited image as the autoencoder reconstructs it.
    pub(crate) fn map(
        &self,
        result: &RgbImage,
        plan: &Plan,
        source: impl FnOnce() -> Result<RgbImage>,
    ) -> Result<GrayImage> {
        match self {
            Self::Mask(mask) => {
                let levels = buffer::copied(mask.as_raw(), MAP)?;
                let missing = || Error::bug("a copy of a mask with missing pixels");
                GrayImage::from_raw(mask.width(), mask.height(), levels).ok_or_else(missing)
            }
            Self::Difference(map) => map.map(&source()?, result, scale(plan.output, plan.target.size())),
        }
    }
}

/// Returns the linear scale from the model's image size to the returned one.
fn scale(image: Size, model: Size) -> f64 {
    (image.area() as f64 / model.area() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn plain(width: u32, level: u8) -> RgbImage {
        RgbImage::from_pixel(width, 4, Rgb([level; 3]))
    }

    #[test]
    fn a_speck_is_no_change_where_the_difference_is_smoothed() {
        let (source, mut result) = (plain(16, 100), plain(16, 100));
        result.put_pixel(8, 2, Rgb([130; 3]));
        let map = |smooth| {
            DifferenceMap {
                smooth,
                ..DifferenceMap::default()
            }
            .map(&source, &result, 1.0)
            .unwrap()
        };
        assert!(map(0.0).pixels().any(|p| p.0[0] == 255));
        assert!(map(1.0).pixels().all(|p| p.0[0] == 0));
    }

    #[test]
    fn lengths_grow_with_the_image() {
        let (source, mut result) = (plain(20, 0), plain(20, 0));
        result.put_pixel(0, 0, Rgb([255; 3]));
        let map = DifferenceMap {
            threshold: 10.0,
            smooth: 0.0,
            grow: 2.0,
            feather: 0.0,
        };
        let width = |scale: f64| {
            map.map(&source, &result, scale)
                .unwrap()
                .pixels()
                .take(20)
                .filter(|p| p.0[0] == 255)
                .count()
        };
        assert_eq!((width(1.0), width(2.0)), (3, 5));
    }

    #[test]
    fn equal_images_have_an_empty_map() {
        let image = plain(8, 9);
        let map = DifferenceMap::default().map(&image, &image, 1.0).unwrap();
        assert!(map.pixels().all(|p| p.0[0] == 0));
    }

    #[test]
    fn settings_that_are_no_lengths_are_refused() {
        let map = DifferenceMap {
            grow: -1.0,
            ..DifferenceMap::default()
        };
        let error = map.map(&plain(2, 0), &plain(2, 0), 1.0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid grow: expected a number from 0 to 8192, got -1"
        );
        let error = DifferenceMap::default()
            .map(&plain(2, 0), &plain(3, 0), 1.0)
            .unwrap_err();
        assert!(
            error.to_string().contains("two of one size, got 2x4 and 3x4"),
            "{error}"
        );
    }

    #[test]
    fn smoothing_of_any_width_ends_and_beyond_the_image_is_as_the_image() {
        let source = RgbImage::new(600, 400);
        let mut result = source.clone();
        for x in 0..60 {
            result.put_pixel(x, 200, Rgb([255; 3]));
        }
        let map = |smooth, scale| {
            let map = DifferenceMap {
                smooth,
                threshold: 0.01,
                ..DifferenceMap::default()
            };
            map.map(&source, &result, scale)
        };
        assert_eq!(map(8192.0, 65_536.0).unwrap(), map(600.0, 1.0).unwrap());
        // Too narrow for a Gaussian: nothing is smoothed.
        assert_eq!(map(1e-45, 1.0).unwrap(), map(0.0, 1.0).unwrap());
        map(1e-20, 1e-20).unwrap();
        for wrong in [1e4, 1e7, 1e12, 3e38, f32::INFINITY, f32::NAN, -1.0] {
            let error = map(wrong, 1.0).unwrap_err().to_string();
            assert!(
                error.starts_with("invalid smooth: expected a number from 0 to 8192, got "),
                "{error}"
            );
        }
        for wrong in [1e30, f64::NAN, f64::INFINITY, -1.0] {
            assert!(
                map(1.0, wrong)
                    .unwrap_err()
                    .to_string()
                    .contains("scale of a difference map")
            );
        }
    }

    #[test]
    fn a_wide_gaussian_is_nearly_the_same_by_boxes() {
        let spot = Difference::from_fn(400, 300, |x, y| {
            Luma([if (150..250).contains(&x) && y > 99 { 1.0 } else { 0.0 }])
        });
        let (exact, boxes) = (imageops::blur(&spot, 40.0), smoothed(spot, 40.0));
        let most = exact
            .iter()
            .zip(boxes.iter())
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(most < 0.03, "{most}");
    }
}
