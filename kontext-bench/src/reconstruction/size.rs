//! The size at which images are measured.

use std::fmt;
use std::str::FromStr;

use image::RgbImage;
use image::imageops::crop_imm;
use kontext_core::{Error, Result, images};

/// Sides are cropped to multiples of this: the autoencoder's 8 times the transformer's 2.
pub const MULTIPLE: u32 = 16;

/// The size at which images are measured, parsed from "original" or a number of pixels.
///
/// # Example
/// ```
/// use image::RgbImage;
/// use kontext_bench::reconstruction::ImageSize;
/// let photo = RgbImage::new(300, 200);
/// assert_eq!(ImageSize::default().prepare(&photo)?.dimensions(), (288, 192));
/// assert_eq!("256".parse::<ImageSize>()?.prepare(&photo)?.dimensions(), (256, 256));
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImageSize {
    /// Each image's own size, centre-cropped to sides that are multiples of [`MULTIPLE`].
    #[default]
    Original,
    /// Squares of this many pixels on a side: the shorter side is resized to it (Lanczos), then the centre is
    /// cropped.
    Square(u32),
}

impl ImageSize {
    /// Resizes or crops an image to the size.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for [`ImageSize::Original`] if a side has fewer than [`MULTIPLE`] pixels.
    pub fn prepare(self, image: &RgbImage) -> Result<RgbImage> {
        let (width, height) = image.dimensions();
        match self {
            ImageSize::Original => {
                if width.min(height) < MULTIPLE {
                    let expected = format!("at least {MULTIPLE} pixels on a side (give a larger one)");
                    return Err(Error::invalid("image", expected, format!("{width}x{height}")));
                }
                Ok(centre(image, width / MULTIPLE * MULTIPLE, height / MULTIPLE * MULTIPLE))
            }
            ImageSize::Square(side) => {
                let size = |length: u32| {
                    let shorter = u64::from(width.min(height).max(1));
                    // Rounded to whole pixels, the shorter side exactly.
                    ((u64::from(length) * u64::from(side) + shorter / 2) / shorter) as u32
                };
                Ok(centre(&images::resize(image, size(width), size(height))?, side, side))
            }
        }
    }
}

fn centre(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (x, y) = ((image.width() - width) / 2, (image.height() - height) / 2);
    crop_imm(image, x, y, width, height).to_image()
}

impl FromStr for ImageSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse::<u32>() {
            _ if text == "original" => Ok(ImageSize::Original),
            // More than 2^14 pixels would be a mistake.
            Ok(side @ 1..=16384) if side % MULTIPLE == 0 => Ok(ImageSize::Square(side)),
            _ => Err(Error::invalid(
                "size",
                format!("\"original\" or a multiple of {MULTIPLE} up to 16384"),
                text,
            )),
        }
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageSize::Original => f.write_str("original"),
            ImageSize::Square(side) => write!(f, "{side}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_image_is_cut_around_its_centre() {
        let image = RgbImage::from_fn(34, 18, |x, y| image::Rgb([x as u8, y as u8, 0]));
        let cut = ImageSize::Original.prepare(&image).unwrap();
        assert_eq!((cut.dimensions(), cut.get_pixel(0, 0).0), ((32, 16), [1, 1, 0]));
        let error = ImageSize::Original
            .prepare(&RgbImage::new(40, 15))
            .unwrap_err()
            .to_string();
        let expected = "invalid image: expected at least 16 pixels on a side (give a larger one), got 40x15";
        assert_eq!(error, expected);
    }

    #[test]
    fn a_square_shows_the_whole_shorter_side() {
        let image = RgbImage::from_fn(90, 30, |x, _| {
            image::Rgb([if (30..60).contains(&x) { 200 } else { 0 }; 3])
        });
        let square = ImageSize::Square(32).prepare(&image).unwrap();
        assert_eq!(square.dimensions(), (32, 32));
        assert!(square.pixels().all(|p| p.0[0] > 90), "the middle third alone");
    }

    #[test]
    fn other_words_and_sizes_are_refused() {
        for text in ["100", "0", "-16", "big", "1000000000"] {
            let error = text.parse::<ImageSize>().unwrap_err().to_string();
            assert!(error.contains("\"original\" or a multiple of 16"), "{error}");
        }
        assert_eq!("original".parse::<ImageSize>().unwrap().to_string(), "original");
    }
}
