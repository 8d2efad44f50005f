//! Images: 8-bit RGB files and buffers to tensors and back.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use tch::{Device, Kind, Tensor};

pub use crate::resize::resize;
use crate::{Error, Result, check};

/// Largest number of pixels, more than any camera has: a file that claims more would exhaust the memory.
const MOST_PIXELS: u64 = 1 << 28;

/// Opens an image file of any format that the `image` crate reads, detected by content, as 8-bit RGB.
///
/// Applies the EXIF orientation; composites transparent parts on white; rounds 16 bits to 8; converts
/// palettes, greys and CMYK to RGB.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Image`] if it is not an image, is truncated or has more
/// than 2^28 pixels.
pub fn open(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    let file = File::open(path).map_err(Error::io(path))?;
    decode(BufReader::new(file), path, || {
        Ok(jpeg_ends(&std::fs::read(path).map_err(Error::io(path))?))
    })
}

/// Decodes an image file in memory as [`open`] does.
///
/// # Errors
/// Those of [`open`], with an empty path: they read "cannot use the image: …".
pub fn from_bytes(bytes: &[u8]) -> Result<RgbImage> {
    decode(Cursor::new(bytes), Path::new(""), || Ok(jpeg_ends(bytes)))
}

/// Decodes an image; `jpeg_ends` checks the whole file if it is a JPEG, and errors name `path`.
fn decode(file: impl BufRead + Seek, path: &Path, jpeg_ends: impl FnOnce() -> Result<bool>) -> Result<RgbImage> {
    let reader = ImageReader::new(file).with_guessed_format().map_err(Error::io(path))?;
    let is_jpeg = reader.format() == Some(ImageFormat::Jpeg);
    let mut decoder = reader.into_decoder().map_err(Error::image(path))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        let reason = format!("expected at most {MOST_PIXELS} pixels, got {width}x{height}; make it smaller");
        return Err(Error::Image {
            path: path.to_owned(),
            reason,
        });
    }
    let orientation = decoder.orientation().map_err(Error::image(path))?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(Error::image(path))?;
    if is_jpeg && !jpeg_ends()? {
        let reason = "it ends early; the file is damaged, fetch or save it again".to_owned();
        return Err(Error::Image {
            path: path.to_owned(),
            reason,
        });
    }
    image.apply_orientation(orientation);
    Ok(flatten(&image))
}

/// Returns `true` if the end marker follows the image data. Without it the decoder would fill the missing
/// part with grey without an error.
fn jpeg_ends(file: &[u8]) -> bool {
    const MARK: u8 = 0xff;
    const START_OF_SCAN: u8 = 0xda;
    const END: [u8; 2] = [MARK, 0xd9];
    // A thumbnail in a segment before the data has its own end marker, so segments are skipped.
    let mut rest = file.get(2..).unwrap_or_default();
    while let [MARK, kind, high, low, ..] = *rest {
        if kind == START_OF_SCAN {
            break;
        }
        let length = if kind == MARK {
            1
        } else {
            2 + usize::from(u16::from_be_bytes([high, low]))
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    rest.windows(END.len()).rev().any(|pair| pair == END)
}

/// Converts to 8-bit RGB, with transparent parts composited on white.
#[must_use]
pub fn flatten(image: &DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let rgba = image.to_rgba8();
    let over_white = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        image::Rgb([over_white(r, a), over_white(g, a), over_white(b, a)])
    })
}

/// Converts an 8-bit image to a tensor [1, 3, H, W] in [-1, 1]: `level / 127.5 - 1`.
///
/// # Errors
/// [`Error::Torch`] if libtorch fails.
pub fn to_tensor(image: &RgbImage, kind: Kind, device: Device) -> Result<Tensor> {
    let (width, height) = (i64::from(image.width()), i64::from(image.height()));
    let bytes = Tensor::f_from_data_size(image.as_raw(), &[1, height, width, 3], Kind::Uint8)?;
    let levels = bytes
        .f_to_device(device)?
        .f_permute([0, 3, 1, 2])?
        .f_to_kind(Kind::Float)?;
    Ok(levels
        .f_div_scalar(127.5)?
        .f_sub_scalar(1.0)?
        .f_to_kind(kind)?
        .f_contiguous()?)
}

/// Rounding of a value to one of 256 levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// To the nearest level, as diffusers does.
    #[default]
    Nearest,
    /// To the level below, as black-forest-labs/flux does.
    Down,
}

/// Converts a tensor [B, 3, H, W] in [-1, 1] (values outside are clamped) to B 8-bit images.
///
/// # Errors
/// [`Error::Shape`] for another shape, [`Error::Allocation`] if the system refuses the memory of an image.
pub fn from_tensor(values: &Tensor, rounding: Rounding) -> Result<Vec<RgbImage>> {
    let [batch, _, height, width] = check::dims("image", values, "[B, 3, H, W]")?;
    check::shape("image", values, "[B, 3, H, W]", &[None, Some(3), None, None])?;
    let unit = values.f_to_kind(Kind::Float)?.f_clamp(-1.0, 1.0)?;
    let levels = match rounding {
        Rounding::Nearest => unit
            .f_mul_scalar(0.5)?
            .f_add_scalar(0.5)?
            .f_mul_scalar(255.0)?
            .f_round()?,
        Rounding::Down => unit.f_add_scalar(1.0)?.f_mul_scalar(127.5)?.f_floor()?,
    };
    let bytes = levels
        .f_to_kind(Kind::Uint8)?
        .f_permute([0, 2, 3, 1])?
        .f_to_device(Device::Cpu)?
        .f_contiguous()?;
    let size = (height * width * 3) as usize;
    (0..batch)
        .map(|item| {
            let mut buffer = crate::buffer::filled(0_u8, size, "an image")?;
            bytes
                .f_select(0, item)?
                .f_reshape([-1])?
                .f_copy_data(&mut buffer, size)?;
            let missing = || Error::bug("an image of a tensor with missing pixels");
            RgbImage::from_raw(width as u32, height as u32, buffer).ok_or_else(missing)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_survives_the_way_to_a_tensor_and_back() {
        let image = RgbImage::from_fn(16, 16, |x, y| image::Rgb([(y * 16 + x) as u8, x as u8, 255 - y as u8]));
        let tensor = to_tensor(&image, Kind::Float, Device::Cpu).unwrap();
        assert_eq!(tensor.size(), [1, 3, 16, 16]);
        assert_eq!(from_tensor(&tensor, Rounding::Nearest).unwrap(), [image]);
    }

    #[test]
    fn transparent_pixels_lie_on_white() {
        let rgba = image::RgbaImage::from_pixel(1, 1, image::Rgba([10, 20, 30, 0]));
        assert_eq!(flatten(&rgba.into()).get_pixel(0, 0).0, [255, 255, 255]);
    }
}
