//! Image files and bytes, in and out, and checks before any work.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ImageBuffer, ImageEncoder, ImageFormat, PixelWithColorType, Rgb, RgbImage, Rgba, RgbaImage};
pub use kontext_core::images::{
    Alpha, EmbeddedProfile, OpenOptions, from_bytes as image_from_bytes, open as open_image, open_mask,
};
use kontext_core::{Error, OutputFile, Result, buffer};
pub use kontext_device::memory::free as free_memory;
use kontext_sampler::Size;

/// JPEG quality of black-forest-labs/flux.
const JPEG_QUALITY: u8 = 95;
/// Formats of written images.
const FORMATS: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];

/// Checks, before any work, that an image can be written to `path`.
///
/// # Errors
/// [`Error::InvalidArgument`] for an unsupported extension, [`Error::Io`] if the folder does not exist or
/// cannot be written.
pub fn check_image_file(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    format_of(path)?;
    kontext_core::check_writable(path)
}

/// Checks, before any work, that an image of this size can be written to a file of this name.
///
/// # Errors
/// [`Error::InvalidArgument`] for an unsupported extension, or a size above the limit of the format: 16,383
/// pixels on a side for WebP, 65,535 for JPEG.
pub fn check_size(path: impl AsRef<Path>, size: Size) -> Result<()> {
    check_limit(format_of(path.as_ref())?, size)
}

/// Checks a size against the limit of a format.
fn check_limit(format: ImageFormat, size: Size) -> Result<()> {
    let (most, name) = match format {
        ImageFormat::WebP => (16_383, "WebP"),
        ImageFormat::Jpeg => (65_535, "JPEG"),
        _ => return Ok(()),
    };
    if size.width.max(size.height) <= most {
        return Ok(());
    }
    Err(Error::invalid(
        "image size",
        format!("at most {most} pixels on a side for {name}; write a PNG"),
        size,
    ))
}

fn format_of(path: &Path) -> Result<ImageFormat> {
    match ImageFormat::from_path(path) {
        Ok(format) if FORMATS.contains(&format) => Ok(format),
        _ => Err(Error::invalid(
            "output file",
            "a name that ends in .png, .jpg or .webp",
            path.display(),
        )),
    }
}

/// Checks, before any work, that an image with transparency can be written to `path`.
///
/// # Errors
/// Those of [`check_image_file`], and [`Error::InvalidArgument`] for a JPEG, which has no transparency.
pub fn check_transparent_file(path: impl AsRef<Path>) -> Result<()> {
    check_image_file(&path)?;
    transparent(format_of(path.as_ref())?)
}

/// Checks that a format has transparency.
fn transparent(format: ImageFormat) -> Result<()> {
    match format {
        ImageFormat::Jpeg => Err(Error::invalid(
            "output file",
            "a PNG or a WebP, because the image has transparent pixels and a JPEG can have none",
            "a JPEG",
        )),
        _ => Ok(()),
    }
}

/// Writes an image with transparency as PNG (with text) or WebP (lossless), whole or not at all.
///
/// # Errors
/// Those of [`save_image`], and [`Error::InvalidArgument`] for a JPEG, which has no transparency.
pub fn save_transparent(image: &RgbaImage, path: impl AsRef<Path>, text: &[(&str, String)]) -> Result<()> {
    let path = path.as_ref();
    transparent(format_of(path)?)?;
    save(image, path, text)
}

/// Encodes an image with transparency as the bytes of a PNG (with text) or WebP: those that [`save_transparent`]
/// writes.
///
/// # Errors
/// Those of [`encode_image`], and [`Error::InvalidArgument`] for JPEG, which has no transparency.
pub fn encode_transparent(image: &RgbaImage, format: ImageFormat, text: &[(&str, String)]) -> Result<Vec<u8>> {
    transparent(format)?;
    encode(image, format, text)
}

/// Writes an image as PNG (with text), JPEG or WebP, whole or not at all.
///
/// # Errors
/// Those of [`Output::save_image`](crate::Output::save_image).
pub fn save_image(image: &RgbImage, path: impl AsRef<Path>, text: &[(&str, String)]) -> Result<()> {
    save(image, path.as_ref(), text)
}

fn save<P: EightBit>(image: &ImageBuffer<P, Vec<u8>>, path: &Path, text: &[(&str, String)]) -> Result<()> {
    let format = format_of(path)?;
    check_limit(format, Size::new(image.width(), image.height()))?;
    let mut file = OutputFile::create(path)?;
    let mut writer = BufWriter::new(file.writer());
    write(image, format, &mut writer, text, path)?;
    writer.flush().map_err(Error::io(path))?;
    drop(writer);
    file.publish()
}

/// Encodes an image as the bytes of a PNG (with text), JPEG (quality 95) or WebP (lossless): those that
/// [`save_image`] writes.
///
/// # Errors
/// [`Error::InvalidArgument`] for another format, or a size above its limit (see [`check_size`]).
///
/// # Example
/// ```
/// use kontext::image::{ImageFormat, RgbImage};
/// let image = RgbImage::new(3, 2);
/// let png = kontext::io::encode_image(&image, ImageFormat::Png, &[("title", "black".to_owned())])?;
/// assert_eq!(kontext::image_from_bytes(&png)?, image);
/// # Ok::<(), kontext::Error>(())
/// ```
pub fn encode_image(image: &RgbImage, format: ImageFormat, text: &[(&str, String)]) -> Result<Vec<u8>> {
    encode(image, format, text)
}

fn encode<P: EightBit>(
    image: &ImageBuffer<P, Vec<u8>>,
    format: ImageFormat,
    text: &[(&str, String)],
) -> Result<Vec<u8>> {
    if !FORMATS.contains(&format) {
        return Err(Error::invalid(
            "image format",
            "PNG, JPEG or WebP",
            format!("{format:?}"),
        ));
    }
    check_limit(format, Size::new(image.width(), image.height()))?;
    in_memory(|file| write(image, format, file, text, Path::new("")))
}

/// Encodes an image of any 8-bit kind as the bytes of a PNG; errors name `path`.
pub(crate) fn encode_png<P>(image: &ImageBuffer<P, Vec<u8>>, path: &Path) -> Result<Vec<u8>>
where
    P: PixelWithColorType<Subpixel = u8>,
{
    // The encoder compresses the image in a vector, which grows up to twice the pixels.
    buffer::can_have(2 * image.as_raw().len() as u64, FILE)?;
    in_memory(|file| {
        image
            .write_with_encoder(PngEncoder::new(file))
            .map_err(Error::image(path))
    })
}

/// Returns what `write` writes; an error if the system refuses the memory.
fn in_memory(write: impl FnOnce(&mut Growing) -> Result<()>) -> Result<Vec<u8>> {
    let mut file = Growing(Vec::new());
    match write(&mut file) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::OutOfMemory => Err(Error::Allocation {
            purpose: FILE,
            mb: (2 * file.0.capacity() as u128).div_ceil(1_000_000).max(1),
        }),
        written => written.map(|()| file.0),
    }
}

/// The memory of an encoded image, in messages.
const FILE: &str = "the image file";

/// Bytes that grow as long as the system grants memory; a [`Vec`] that cannot grow ends the program.
struct Growing(Vec<u8>);

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_reserve(bytes.len()).map_err(|_| ErrorKind::OutOfMemory)?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Pixels of 8-bit RGB, with or without alpha.
trait EightBit: PixelWithColorType<Subpixel = u8> {
    /// The colour type of a PNG.
    const PNG: png::ColorType;
}

impl EightBit for Rgb<u8> {
    const PNG: png::ColorType = png::ColorType::Rgb;
}

impl EightBit for Rgba<u8> {
    const PNG: png::ColorType = png::ColorType::Rgba;
}

/// Encodes an image to `writer`; errors name `path`.
fn write<P: EightBit>(
    image: &ImageBuffer<P, Vec<u8>>,
    format: ImageFormat,
    mut writer: impl Write,
    text: &[(&str, String)],
    path: &Path,
) -> Result<()> {
    let (width, height) = image.dimensions();
    match format {
        ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut writer, JPEG_QUALITY)
            .write_image(image.as_raw(), width, height, P::COLOR_TYPE)
            .map_err(Error::image(path)),
        ImageFormat::WebP => {
            // The encoder holds the pixels with an alpha channel, and the whole file in a vector that doubles as it
            // grows.
            const BYTES_PER_PIXEL: u64 = 11;
            buffer::can_have(Size::new(width, height).area() * BYTES_PER_PIXEL, FILE)?;
            WebPEncoder::new_lossless(&mut writer)
                .write_image(image.as_raw(), width, height, P::COLOR_TYPE)
                .map_err(Error::image(path))
        }
        // The crate compresses the image in a vector, which grows up to twice the pixels. Where that is too much, it is
        // written in pieces, into a file of the same pixels.
        _ => {
            let in_pieces = buffer::can_have(2 * image.as_raw().len() as u64, FILE).is_err();
            write_png(image, &mut writer, text, in_pieces)
        }
        .map_err(|error| {
            Error::io(path)(match error {
                png::EncodingError::IoError(source) => source,
                other => other.into(),
            })
        }),
    }
}

fn write_png<P: EightBit>(
    image: &ImageBuffer<P, Vec<u8>>,
    writer: impl Write,
    text: &[(&str, String)],
    in_pieces: bool,
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(writer, image.width(), image.height());
    encoder.set_color(P::PNG);
    encoder.set_depth(png::BitDepth::Eight);
    for (key, value) in text {
        encoder.add_itxt_chunk((*key).to_owned(), value.clone())?;
    }
    let mut writer = encoder.write_header()?;
    if in_pieces {
        let mut pieces = writer.stream_writer_with_size(PIECE)?;
        pieces.write_all(image.as_raw())?;
        pieces.finish()?;
    } else {
        writer.write_image_data(image.as_raw())?;
    }
    writer.finish()
}

/// Bytes of a compressed piece of a PNG.
const PIECE: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> RgbImage {
        RgbImage::from_fn(300, 200, |x, y| {
            image::Rgb([(x * y) as u8, (x + 3 * y) as u8, (x ^ y) as u8])
        })
    }

    #[test]
    fn a_png_in_pieces_has_the_same_pixels_and_text() {
        let image = image();
        let text = [("prompt", "a cat".to_owned())];
        let files = [false, true].map(|in_pieces| {
            let mut file = Vec::new();
            write_png(&image, &mut file, &text, in_pieces).unwrap();
            file
        });
        for file in &files {
            assert_eq!(image_from_bytes(file).unwrap(), image);
            assert!(file.windows(6).any(|bytes| bytes == b"prompt"));
        }
    }

    /// A file that cannot be written.
    struct Refusing(ErrorKind);

    impl Write for Refusing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_named_in_every_format() {
        for format in FORMATS {
            let error = write(&image(), format, Refusing(ErrorKind::StorageFull), &[], Path::new("a")).unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert_eq!(cause, "the disk is full; free some space", "{format:?}");
        }
    }
}
