//! Decoding of JPEG.

use std::borrow::Cow;
use std::io::Read;

use image::ImageFormat;
use image::error::{DecodingError, ImageError, UnsupportedError, UnsupportedErrorKind};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::color::Profile;
use super::decoded::{Decoded, Failure, Header, METADATA, PixelLimit, cut};
use super::exif::Metadata;
use super::jpeg_scans;
use super::jpeg_segments::{APP1, APP14, EOI, SOF_PROGRESSIVE, SOS, check_coding, next_segment, segments};
use super::samples::{Channels, DECODED, Depth, Samples};
use crate::{Error, Result as KontextResult, buffer};

/// Side of the largest coding unit: four blocks.
const LARGEST_UNIT: u64 = 32;

/// A decoder of a file in memory.
type InMemory<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

/// Decodes the first image of a JPEG; others, such as a thumbnail or a map of brightness, may follow it.
pub(super) fn decode(file: &[u8], limit: PixelLimit) -> Result<Decoded, Failure> {
    let (headers, (width, height)) = headers(file)?;
    limit.check(width, height)?;
    jpeg_scans::check(file)?;
    let missing = || Error::bug("a decoded JPEG header without a colour space or size");
    let space = headers.input_colorspace().ok_or_else(missing)?;
    let (data, out, channels) = match space {
        ColorSpace::Luma => (Cow::Borrowed(file), ColorSpace::Luma, Channels::Grey),
        ColorSpace::CMYK => (Cow::Borrowed(file), ColorSpace::CMYK, Channels::Cmyk),
        ColorSpace::YCCK => (Cow::Owned(as_cmyk(file)?), ColorSpace::CMYK, Channels::Cmyk),
        _ => (Cow::Borrowed(file), ColorSpace::RGB, Channels::Rgb),
    };
    let mut decoder = decoder(&data, out);
    decoder.decode_headers().map_err(failure)?;
    let size = decoder.output_buffer_size().ok_or_else(missing)?;
    if size != width as usize * height as usize * channels.count() {
        return Err(Error::bug("a JPEG decoder that changes the number of channels").into());
    }
    let mut bytes = buffer::filled(0_u8, size, DECODED)?;
    // The decoder holds the coefficients of all blocks of a progressive image.
    if is_progressive(file) {
        buffer::can_have(coefficients(channels, width, height), DECODED)?;
    }
    decoder.decode_into(&mut bytes).map_err(failure)?;
    match space {
        // Adobe's programs, and therefore all, store the amount of no ink.
        ColorSpace::CMYK => bytes.iter_mut().for_each(|level| *level = 255 - *level),
        ColorSpace::YCCK => bytes.as_chunks_mut::<4>().0.iter_mut().for_each(inks),
        _ => {}
    }
    Ok(Decoded {
        profile: headers.icc_profile().map(Profile::Icc),
        orientation: metadata(file).orientation(),
        samples: Samples {
            width,
            height,
            channels,
            depth: Depth::Eight,
            bytes,
        },
    })
}

fn is_progressive(file: &[u8]) -> bool {
    segments(file).any(|segment| segment.kind == SOF_PROGRESSIVE)
}

/// Returns the bytes of the coefficients of all blocks.
fn coefficients(channels: Channels, width: u32, height: u32) -> u64 {
    let padded = |side: u32| u64::from(side).next_multiple_of(LARGEST_UNIT);
    2 * channels.count() as u64 * padded(width) * padded(height)
}

/// Reads the headers of a JPEG, which end with that of the first scan.
pub(super) fn header(file: impl Read) -> Result<Header, Failure> {
    let head = up_to_scan(file)?;
    let (_, (width, height)) = headers(&head)?;
    let orientation = metadata(&head).orientation();
    Ok(Header {
        width,
        height,
        orientation,
    })
}

/// Reads the segments before the first scan, and that of its header.
fn up_to_scan(mut file: impl Read) -> Result<Vec<u8>, Failure> {
    let mut head = Vec::new();
    // After what there is, for the segments that begin in it.
    let mut more = 1 << 12;
    loop {
        let there = head.len();
        let read = file.by_ref().take(more).read_to_end(&mut head).map_err(cut)?;
        let mut at = 0;
        while let Some(segment) = next_segment(&head, at) {
            at = segment.start + segment.body.len();
            if segment.kind == SOS || segment.kind == EOI {
                head.truncate(at);
                return Ok(head);
            }
        }
        if read == 0 || head.len() > METADATA {
            return Ok(head);
        }
        more = (there + read) as u64;
    }
}

/// Reads the headers of a file that goes on at least to the first scan, and its size.
fn headers(file: &[u8]) -> Result<(InMemory<'_>, (u32, u32)), Failure> {
    check_coding(file)?;
    let mut headers = decoder(file, ColorSpace::RGB);
    headers.decode_headers().map_err(failure)?;
    let missing = || Error::bug("a decoded JPEG header without a size");
    let (width, height) = headers.dimensions().ok_or_else(missing)?;
    // Sides have 16 bits.
    Ok((headers, (width as u32, height as u32)))
}

fn decoder(file: &[u8], out: ColorSpace) -> InMemory<'_> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(out);
    JpegDecoder::new_with_options(ZCursor::new(file), options)
}

/// Returns a YCCK file whose Adobe segment says CMYK, so that the decoder passes on all four channels.
fn as_cmyk(file: &[u8]) -> KontextResult<Vec<u8>> {
    /// Place of the transform: after "Adobe", the version and two flags.
    const TRANSFORM: usize = 11;
    let mut changed = buffer::copied(file, "the image file")?;
    for segment in segments(file).filter(|segment| segment.kind == APP14 && segment.body.starts_with(b"Adobe")) {
        if let Some(transform) = changed.get_mut(segment.start + TRANSFORM) {
            *transform = 0;
        }
    }
    Ok(changed)
}

/// Returns EXIF, which may be cut into segments, and XMP.
fn metadata(file: &[u8]) -> Metadata {
    const EXIF: &[u8] = b"Exif\0\0";
    const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    let mut metadata = Metadata::default();
    for segment in segments(file).filter(|segment| segment.kind == APP1) {
        if let Some(part) = segment.body.strip_prefix(EXIF) {
            metadata.exif.get_or_insert_default().extend_from_slice(part);
        } else if let Some(xmp) = segment.body.strip_prefix(XMP) {
            metadata.xmp = Some(xmp.to_vec());
        }
    }
    metadata
}

/// Converts YCCK to amounts of ink.
fn inks(pixel: &mut [u8; 4]) {
    let [y, cb, cr, k] = pixel.map(f32::from);
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    let ink = [
        y + 1.402 * cr,
        y - 0.344_136 * cb - 0.714_136 * cr,
        y + 1.772 * cb,
        255.0 - k,
    ];
    *pixel = ink.map(|value| value.round().clamp(0.0, 255.0) as u8);
}

fn failure(error: DecodeErrors) -> Failure {
    match error {
        DecodeErrors::Unsupported(scheme) => {
            let kind = UnsupportedErrorKind::GenericFeature(format!("{scheme:?}"));
            ImageError::Unsupported(UnsupportedError::from_format_and_kind(ImageFormat::Jpeg.into(), kind))
        }
        error => ImageError::Decoding(DecodingError::new(ImageFormat::Jpeg.into(), error)),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(name: &str) -> Vec<u8> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures");
        std::fs::read(folder.join(name)).unwrap()
    }

    #[test]
    fn only_a_progressive_image_needs_memory_for_its_coefficients() {
        // The mark of the frame is all that differs here.
        let baseline = picture("turned6.jpg");
        assert!(!is_progressive(&baseline));
        let frame = segments(&baseline).find(|segment| segment.kind == 0xc0).unwrap().start;
        let mut progressive = baseline.clone();
        progressive[frame - 3] = SOF_PROGRESSIVE;
        assert!(is_progressive(&progressive));
        assert_eq!(coefficients(Channels::Rgb, 33, 64), 2 * 3 * 64 * 64);
    }

    #[test]
    fn headers_for_which_memory_is_short_say_so() {
        struct Refusing;
        impl Read for Refusing {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::OutOfMemory.into())
            }
        }
        let error = header(Refusing).err();
        assert!(
            matches!(error, Some(Failure::Other(Error::Allocation { .. }))),
            "{error:?}"
        );
    }
}
