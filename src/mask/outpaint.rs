//! Outpainting: an image continued beyond its sides.

use image::{GenericImage, Rgb, RgbImage};
use kontext_core::images::OpenOptions;
use kontext_core::{Error, Result, buffer, range};
use kontext_sampler::Size;
use kontext_sampler::geometry::LARGEST_SIDE;
use serde::{Deserialize, Serialize};

use super::Region;

/// A continuation of the edited image beyond its sides.
///
/// The image is padded, the padding is repainted as under a [`Mask`](crate::Mask), and mixed with the old image over the
/// feather, along the padded sides. Beyond the feather the old image keeps its bytes.
///
/// # Example
/// ```
/// use kontext::image::RgbImage;
/// use kontext::{Outpaint, Request};
/// let square = RgbImage::new(512, 512);
/// let wide = Request::edit(square, "continue the landscape").outpaint(Outpaint::ratio(16, 9));
/// # let folder = tempfile::tempdir().unwrap();
/// # kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers)?;
/// # let pipe = kontext::Pipeline::builder().device(kontext::Device::Cpu).load(folder.path())?;
/// assert_eq!(pipe.plan(&wide)?.output, kontext::Size::new(910, 512));
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Outpaint {
    /// The pixels to add.
    pub extent: OutpaintExtent,
    /// Pixels of the old image, along its padded sides, over which it is mixed with the result, from 0 to 8192; at most
    /// half of its shorter side. Default: 40, or an eighth of the shorter side if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feather: Option<u32>,
    /// Content of the padding that the model sees. Default: grey.
    #[serde(default)]
    pub fill: OutpaintFill,
    /// Least distance from the feather's end to that of the region that the model sees, from 0 to 8192 pixels; that of a
    /// [`Mask`](crate::Mask) next to it is taken instead. Default: `None`, the whole image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
}

/// The pixels that [`Outpaint`] adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums)] // Two ways to say it.
pub enum OutpaintExtent {
    /// Pixels on the left, above, on the right and below, each from 0 to 8192.
    Sides([u32; 4]),
    /// As many as give the image this ratio of width to height, the same on both sides, each at most 8192.
    Ratio([u32; 2]),
}

/// The content of the padding before it is repainted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutpaintFill {
    /// Medium grey.
    #[default]
    Grey,
    /// The outermost pixels, repeated.
    Edge,
}

/// Longest default feather.
const FEATHER: u32 = 40;
/// Level of the grey padding.
const GREY: u8 = 127;

impl Outpaint {
    /// Continues an image by pixels on the left, above, on the right and below.
    #[must_use]
    pub fn sides(left: u32, top: u32, right: u32, bottom: u32) -> Self {
        Self::new(OutpaintExtent::Sides([left, top, right, bottom]))
    }

    /// Continues an image on two sides to a ratio of width to height, such as 16 to 9.
    #[must_use]
    pub fn ratio(width: u32, height: u32) -> Self {
        Self::new(OutpaintExtent::Ratio([width, height]))
    }

    fn new(extent: OutpaintExtent) -> Self {
        Self {
            extent,
            feather: None,
            fill: OutpaintFill::default(),
            crop: None,
        }
    }

    /// Sets [`Outpaint::feather`].
    #[must_use]
    pub fn feather(self, pixels: u32) -> Self {
        Self {
            feather: Some(pixels),
            ..self
        }
    }

    /// Sets [`Outpaint::fill`].
    #[must_use]
    pub fn fill(self, fill: OutpaintFill) -> Self {
        Self { fill, ..self }
    }

    /// Sets [`Outpaint::crop`]: the model works on the padding and what is near it, instead of on the whole image.
    #[must_use]
    pub fn crop(self, margin: u32) -> Self {
        Self {
            crop: Some(margin),
            ..self
        }
    }

    /// Returns the size of the continued image, and the place of the old one in it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if nothing is added, or the result has too many pixels.
    pub fn canvas(&self, image: Size) -> Result<(Size, Region)> {
        let [left, top, right, bottom] = self.padding(image)?;
        let side = |a: u32, b: u32, c: u32| a.saturating_add(b).saturating_add(c);
        let canvas = Size::new(side(left, image.width, right), side(top, image.height, bottom));
        if canvas == image {
            let expected = format!("at least a pixel more than the image has, {image}");
            return Err(Error::invalid("outpaint", expected, canvas));
        }
        if canvas.area() > OpenOptions::MAX_PIXELS {
            let expected = format!("at most {} pixels in all", OpenOptions::MAX_PIXELS);
            return Err(Error::invalid("outpaint", expected, canvas));
        }
        Ok((canvas, Region { left, top, size: image }))
    }

    /// Returns the pixels on the left, above, on the right and below.
    fn padding(&self, image: Size) -> Result<[u32; 4]> {
        let sides = match self.extent {
            OutpaintExtent::Sides(sides) => sides,
            OutpaintExtent::Ratio([width, height]) => {
                range::within("width of outpaint's ratio", width, 1..=LARGEST_SIDE)?;
                range::within("height of outpaint's ratio", height, 1..=LARGEST_SIDE)?;
                let ratio = f64::from(width) / f64::from(height);
                let more = |side: u32, other: u32, ratio: f64| {
                    ((f64::from(other) * ratio).round().min(f64::from(u32::MAX)) as u32).saturating_sub(side)
                };
                let (across, down) = (
                    more(image.width, image.height, ratio),
                    more(image.height, image.width, 1.0 / ratio),
                );
                [across / 2, down / 2, across.div_ceil(2), down.div_ceil(2)]
            }
        };
        for side in sides {
            range::within("pixels on a side of outpaint", side, 0..=LARGEST_SIDE)?;
        }
        Ok(sides)
    }

    /// Returns the feather in an image of this size.
    pub(crate) fn feather_of(&self, image: Size) -> u32 {
        let shorter = image.width.min(image.height);
        self.feather.unwrap_or(FEATHER.min(shorter / 8)).min(shorter / 2)
    }

    /// Returns the smallest region with the padding and the feather.
    pub(super) fn reach(&self, canvas: Size, old: Region) -> Region {
        let feather = self.feather_of(old.size);
        let (right, bottom) = (old.left + old.size.width, old.top + old.size.height);
        let part = |left: u32, top: u32, width: u32, height: u32| Region {
            left,
            top,
            size: Size::new(width, height),
        };
        let sides = [
            (old.left > 0).then(|| part(0, 0, old.left + feather, canvas.height)),
            (old.top > 0).then(|| part(0, 0, canvas.width, old.top + feather)),
            (right < canvas.width).then(|| part(right - feather, 0, canvas.width - right + feather, canvas.height)),
            (bottom < canvas.height).then(|| part(0, bottom - feather, canvas.width, canvas.height - bottom + feather)),
        ];
        sides.into_iter().flatten().reduce(Region::with).unwrap_or(old)
    }

    /// Checks the settings that do not depend on the image.
    pub(crate) fn check(&self) -> Result<()> {
        range::within(
            "feather of outpaint",
            self.feather.unwrap_or_default(),
            0..=LARGEST_SIDE,
        )?;
        range::within("crop of outpaint", self.crop.unwrap_or_default(), 0..=LARGEST_SIDE).map(drop)
    }

    /// Pads an image.
    pub(crate) fn pad(&self, image: &RgbImage, canvas: Size, old: Region) -> Result<RgbImage> {
        let pixels = buffer::filled(GREY, 3 * canvas.area() as usize, "the image to outpaint")?;
        let missing = || Error::bug("a padded image with missing pixels");
        let mut padded = RgbImage::from_raw(canvas.width, canvas.height, pixels).ok_or_else(missing)?;
        if self.fill == OutpaintFill::Edge {
            let within = |at: u32, from: u32, side: u32| at.saturating_sub(from).min(side - 1);
            for (x, y, pixel) in padded.enumerate_pixels_mut() {
                let (x, y) = (within(x, old.left, old.size.width), within(y, old.top, old.size.height));
                let &Rgb(levels) = image.get_pixel(x, y);
                pixel.0 = levels;
            }
        } else {
            let outside = |error| Error::bug(format!("an image beyond its own canvas ({error})"));
            padded.copy_from(image, old.left, old.top).map_err(outside)?;
        }
        Ok(padded)
    }
}
