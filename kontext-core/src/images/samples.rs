//! Decoded samples in the layout of their file, and their way to 8-bit RGB.

use image::{DynamicImage, GrayImage, RgbImage};
use rayon::prelude::*;

use super::alpha::over;
use super::color::Conversion;
use crate::{Error, Result, buffer};

/// The memory of a decoded image, in messages.
pub(super) const DECODED: &str = "the decoded image";
/// Red, green and blue.
const RGB: usize = 3;

/// Channels of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channels {
    /// A grey level.
    Grey,
    /// A grey level and alpha.
    GreyAlpha,
    /// Red, green and blue.
    Rgb,
    /// Red, green, blue and alpha.
    Rgba,
    /// Cyan, magenta, yellow and black, as amounts of ink.
    Cmyk,
}

impl Channels {
    /// Returns the number of channels.
    pub(super) fn count(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::GreyAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba | Self::Cmyk => 4,
        }
    }

    /// Returns `true` if the last channel is alpha.
    fn has_alpha(self) -> bool {
        matches!(self, Self::GreyAlpha | Self::Rgba)
    }
}

/// Depth of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// A byte.
    Eight,
    /// Two bytes, the high one first, as PNG stores them.
    Sixteen,
}

impl Depth {
    /// Returns the bytes of a sample.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Eight => 1,
            Self::Sixteen => 2,
        }
    }
}

/// Decoded samples, rows from the top.
#[derive(Debug)]
pub(super) struct Samples {
    pub width: u32,
    pub height: u32,
    pub channels: Channels,
    pub depth: Depth,
    pub bytes: Vec<u8>,
}

impl Samples {
    /// Returns `true` if a pixel is not opaque.
    pub(super) fn is_transparent(&self) -> bool {
        let pixel = self.channels.count() * self.depth.bytes();
        let opaque = |pixel: &[u8]| pixel.iter().rev().take(self.depth.bytes()).all(|byte| *byte == 255);
        self.channels.has_alpha() && !self.bytes.par_chunks_exact(pixel).all(opaque)
    }

    /// Returns the alpha channel in 8 bits; `None` if all pixels are opaque.
    pub(super) fn alpha(&self) -> Result<Option<GrayImage>> {
        if !self.is_transparent() {
            return Ok(None);
        }
        let depth = self.depth.bytes();
        let pixels = self.bytes.chunks_exact(self.channels.count() * depth);
        let mut levels = buffer::with_room(pixels.len(), DECODED)?;
        levels.extend(pixels.map(|pixel| match pixel[pixel.len() - depth..] {
            [high, low] => rounded(u16::from_be_bytes([high, low])),
            _ => pixel[pixel.len() - 1],
        }));
        let missing = || Error::bug("an alpha channel with missing pixels");
        GrayImage::from_raw(self.width, self.height, levels)
            .ok_or_else(missing)
            .map(Some)
    }

    /// Converts to 8-bit RGB: colours by `conversion`, then depth, then alpha, which is composited on `ground`.
    pub(super) fn into_rgb(self, conversion: Option<&Conversion>, ground: [u8; RGB]) -> Result<RgbImage> {
        let Self {
            width,
            height,
            channels,
            depth,
            mut bytes,
        } = self;
        let row = width.max(1) as usize;
        let stride = row * channels.count() * depth.bytes();
        let rgb = if (channels, depth) == (Channels::Rgb, Depth::Eight) {
            if let Some(conversion) = conversion {
                let convert = |scratch: &mut Vec<u8>, row: &mut [u8]| {
                    scratch.clear();
                    scratch.extend_from_slice(row);
                    conversion.row(scratch, &[], row);
                };
                bytes.par_chunks_exact_mut(stride).for_each_init(Vec::new, convert);
            }
            bytes
        } else {
            let mut rgb = buffer::filled(0_u8, row * height as usize * RGB, DECODED)?;
            let rows = bytes.par_chunks_exact(stride).zip(rgb.par_chunks_exact_mut(row * RGB));
            let convert = |scratch: &mut Scratch, (source, target): (&[u8], &mut [u8])| {
                scratch.convert(source, target, (channels, depth), conversion, ground);
            };
            rows.for_each_init(Scratch::default, convert);
            rgb
        };
        RgbImage::from_raw(width, height, rgb).ok_or_else(|| Error::bug("a decoded image with missing pixels"))
    }
}

/// Samples of one row on their way.
#[derive(Default)]
struct Scratch {
    colors: Vec<u8>,
    wide: Vec<u16>,
    alpha: Vec<u8>,
}

impl Scratch {
    /// Converts a row of any layout to 8-bit RGB.
    fn convert(
        &mut self,
        source: &[u8],
        target: &mut [u8],
        (channels, depth): (Channels, Depth),
        conversion: Option<&Conversion>,
        ground: [u8; RGB],
    ) {
        let count = channels.count();
        let colors = count - usize::from(channels.has_alpha());
        self.colors.clear();
        self.wide.clear();
        self.alpha.clear();
        match depth {
            Depth::Eight => {
                for pixel in source.chunks_exact(count) {
                    self.colors.extend_from_slice(&pixel[..colors]);
                    self.alpha.extend_from_slice(&pixel[colors..]);
                }
            }
            Depth::Sixteen => {
                for pixel in source.as_chunks::<2>().0.chunks_exact(count) {
                    let pixel = pixel.iter().map(|sample| u16::from_be_bytes(*sample));
                    for (place, sample) in pixel.enumerate() {
                        if place == colors {
                            self.alpha.push(rounded(sample));
                        } else if conversion.is_some() {
                            self.wide.push(sample);
                        } else {
                            self.colors.push(rounded(sample));
                        }
                    }
                }
            }
        }
        match conversion {
            Some(conversion) => conversion.row(&self.colors, &self.wide, target),
            None => spread(&self.colors, target, channels),
        }
        if channels.has_alpha() {
            for (pixel, alpha) in target.as_chunks_mut::<RGB>().0.iter_mut().zip(&self.alpha) {
                for (value, ground) in pixel.iter_mut().zip(ground) {
                    *value = over(*value, *alpha, ground);
                }
            }
        }
    }
}

/// Copies a row's colours to RGB without a profile.
fn spread(colors: &[u8], target: &mut [u8], channels: Channels) {
    match channels {
        Channels::Grey | Channels::GreyAlpha => {
            for (pixel, level) in target.as_chunks_mut::<RGB>().0.iter_mut().zip(colors) {
                *pixel = [*level; RGB];
            }
        }
        Channels::Rgb | Channels::Rgba => target.copy_from_slice(colors),
        Channels::Cmyk => {
            let pixels = target.as_chunks_mut::<RGB>().0.iter_mut();
            for (pixel, &[c, m, y, k]) in pixels.zip(colors.as_chunks::<4>().0) {
                // Pillow's formula.
                let light = |ink: u8| 255 - k - product(ink, 255 - k);
                *pixel = [c, m, y].map(light);
            }
        }
    }
}

/// Returns a product of shares of 255, rounded.
fn product(a: u8, b: u8) -> u8 {
    ((u32::from(a) * u32::from(b) + 127) / 255) as u8
}

/// Rounds 16 bits to 8.
fn rounded(sample: u16) -> u8 {
    ((u32::from(sample) + 128) / 257) as u8
}

/// Converts to 8-bit RGB, with transparent parts composited on white. Ends the program if the system refuses the
/// memory; files are opened without this.
#[must_use]
pub fn flatten(image: &DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let rgba = image.to_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (pixel, rgba) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [red, green, blue, alpha] = rgba.0;
        pixel.0 = [red, green, blue].map(|value| over(value, alpha, 255));
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparent_pixels_lie_on_white() {
        let rgba = image::RgbaImage::from_pixel(1, 1, image::Rgba([10, 20, 30, 0]));
        assert_eq!(flatten(&rgba.into()).get_pixel(0, 0).0, [255, 255, 255]);
    }

    #[test]
    fn sixteen_bits_are_rounded_to_the_nearest_level() {
        for sample in 0..=u16::MAX {
            assert_eq!(rounded(sample), (f64::from(sample) / 257.0).round() as u8);
        }
    }
}
