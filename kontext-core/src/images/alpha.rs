//! The transparency of an image, kept apart from its colours.

use image::{GrayImage, RgbImage, RgbaImage};

use super::resize;
use crate::{Error, Result, buffer};

/// The ground of a transparent image without another: white.
pub(super) const WHITE: [u8; 3] = [255; 3];
/// The memory of the alpha channel, in messages.
const ALPHA: &str = "the alpha channel";

/// The transparency of an image whose colours were composited on a ground, to be put back in what was made of it.
///
/// # Example
/// ```
/// use image::{Rgba, RgbaImage};
/// use kontext_core::images::OpenOptions;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("logo.png");
/// let logo = RgbaImage::from_fn(2, 1, |x, _| Rgba([200, 10, 10, if x == 0 { 255 } else { 0 }]));
/// # logo.save(&path).unwrap();
/// let (image, alpha) = OpenOptions::new().ground([0, 0, 255]).open_with_alpha(&path)?;
/// assert_eq!(image.as_raw(), &[200, 10, 10, 0, 0, 255]);
/// let result = alpha.expect("a transparent image").put_back(&image)?;
/// assert_eq!(result.as_raw(), &[200, 10, 10, 255, 0, 0, 255, 0]);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Alpha {
    /// 0 for a transparent pixel, 255 for an opaque one.
    pub levels: GrayImage,
    /// The colour that the image was composited on.
    pub ground: [u8; 3],
}

impl Alpha {
    /// Creates the transparency of an image on a ground.
    #[must_use]
    pub fn new(levels: GrayImage, ground: [u8; 3]) -> Self {
        Self { levels, ground }
    }

    /// Puts the transparency back in an image that shows the same frame, such as an edit of the composited one. It is
    /// resized by Lanczos to the image's size where the sizes differ.
    ///
    /// Opaque pixels keep their bytes. In partly transparent ones the share of the ground is taken out of the colour, so
    /// that composited on the ground again it is the image's within a level, as far as such a colour exists. Transparent
    /// ones keep theirs, which nobody sees.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a size is zero, [`Error::Allocation`] and [`Error::Thread`] if the system refuses
    /// memory or threads.
    pub fn put_back(&self, image: &RgbImage) -> Result<RgbaImage> {
        let (width, height) = image.dimensions();
        let resized = if self.levels.dimensions() == (width, height) {
            None
        } else {
            let wide = spread(&self.levels)?;
            Some(narrowed(&resize(&wide, width, height)?)?)
        };
        let levels = resized.as_ref().unwrap_or(&self.levels);
        let mut pixels = buffer::with_room(levels.as_raw().len().saturating_mul(4), "the transparent image")?;
        for (pixel, level) in image.pixels().zip(levels.as_raw()) {
            let [red, green, blue] = pixel.0;
            let [on_red, on_green, on_blue] = self.ground;
            let bare = |value, ground| without_ground(value, *level, ground);
            pixels.extend([bare(red, on_red), bare(green, on_green), bare(blue, on_blue), *level]);
        }
        let missing = || Error::bug("a transparent image with missing pixels");
        RgbaImage::from_raw(width, height, pixels).ok_or_else(missing)
    }
}

/// Returns the levels as an image of three equal channels.
pub(super) fn spread(levels: &GrayImage) -> Result<RgbImage> {
    let mut pixels = buffer::with_room(levels.as_raw().len().saturating_mul(3), ALPHA)?;
    pixels.extend(levels.as_raw().iter().flat_map(|level| [*level; 3]));
    let missing = || Error::bug("an alpha channel with missing pixels");
    RgbImage::from_raw(levels.width(), levels.height(), pixels).ok_or_else(missing)
}

/// Returns the first channel of an image.
pub(super) fn narrowed(image: &RgbImage) -> Result<GrayImage> {
    let mut levels = buffer::with_room(image.as_raw().len() / 3, ALPHA)?;
    levels.extend(image.pixels().map(|pixel| pixel.0[0]));
    let missing = || Error::bug("an alpha channel with missing pixels");
    GrayImage::from_raw(image.width(), image.height(), levels).ok_or_else(missing)
}

/// Composites a level on that of a ground.
pub(super) fn over(value: u8, alpha: u8, ground: u8) -> u8 {
    let (value, alpha, ground) = (u32::from(value), u32::from(alpha), u32::from(ground));
    ((value * alpha + ground * (255 - alpha) + 127) / 255) as u8
}

/// Returns the level that [`over`] composites to `value`, or the nearest one to it.
fn without_ground(value: u8, alpha: u8, ground: u8) -> u8 {
    if alpha == 0 || alpha == 255 {
        return value;
    }
    let (value, alpha, ground) = (i32::from(value), i32::from(alpha), i32::from(ground));
    let own = f64::from(value * 255 - ground * (255 - alpha)) / f64::from(alpha);
    own.round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_composited_to_itself_again_within_one() {
        for ground in [0, 7, 128, 255] {
            for alpha in 0..=255 {
                for value in 0..=255 {
                    let composited = over(value, alpha, ground);
                    let again = over(without_ground(composited, alpha, ground), alpha, ground);
                    let expected = if alpha == 0 { ground } else { composited };
                    assert!(again.abs_diff(expected) <= 1, "{value} {alpha} {ground}");
                }
            }
        }
        assert_eq!((without_ground(9, 0, 255), without_ground(9, 255, 255)), (9, 9));
        // Darker than any colour can be on white at this alpha.
        assert_eq!(without_ground(0, 100, 255), 0);
    }
}
