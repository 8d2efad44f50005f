//! Decoding of WebP.

use std::io::{BufRead, Cursor, Seek, SeekFrom};

use image::ImageFormat;
use image::error::{DecodingError, ImageError};
use image_webp::{DecodingError as WebPError, WebPDecoder};

use super::color::Profile;
use super::decoded::{Decoded, Failure, Header, METADATA, PixelLimit, cut, ends_early};
use super::exif::Metadata;
use super::orientation::Orientation;
use super::samples::{Channels, DECODED, Depth, Samples};
use crate::buffer;

/// Decodes a WebP. Of an animation it is the first frame.
pub(super) fn decode(file: &[u8], limit: PixelLimit) -> Result<Decoded, Failure> {
    let mut decoder = opened(Cursor::new(file))?;
    let (width, height) = decoder.dimensions();
    limit.check(width, height)?;
    let orientation = orientation(&mut decoder);
    // Metadata that cannot be read is none.
    let profile = decoder.icc_profile().ok().flatten().map(Profile::Icc);
    let channels = if decoder.has_alpha() {
        Channels::Rgba
    } else {
        Channels::Rgb
    };
    let size = decoder
        .output_buffer_size()
        .ok_or_else(|| failure(WebPError::ImageTooLarge))?;
    let mut bytes = buffer::filled(0_u8, size, DECODED)?;
    // The decoder holds four channels, and three planes of the whole blocks of a lossy image; of an animation the
    // canvas, too.
    let padded = |side: u32| u64::from(side).next_multiple_of(16);
    let per_pixel = if decoder.is_animated() { 16 } else { 9 };
    buffer::can_have(per_pixel * padded(width) * padded(height), DECODED)?;
    decoder.read_image(&mut bytes).map_err(failure)?;
    Ok(Decoded {
        profile,
        orientation,
        samples: Samples {
            width,
            height,
            channels,
            depth: Depth::Eight,
            bytes,
        },
    })
}

/// Reads the headers of a WebP.
pub(super) fn header(file: impl BufRead + Seek) -> Result<Header, Failure> {
    let mut decoder = opened(file)?;
    let (width, height) = decoder.dimensions();
    let orientation = orientation(&mut decoder);
    Ok(Header {
        width,
        height,
        orientation,
    })
}

fn opened<R: BufRead + Seek>(mut file: R) -> Result<WebPDecoder<R>, Failure> {
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(cut)?;
    let length = file.seek(SeekFrom::End(0)).map_err(cut)?;
    file.rewind().map_err(cut)?;
    // Metadata may follow the pixels, and would be missed. A padding byte at the end may be missing.
    let [_, _, _, _, size @ ..] = start;
    if length + 1 < u64::from(u32::from_le_bytes(size)) + 8 {
        return Err(ends_early());
    }
    let mut decoder = WebPDecoder::new(file).map_err(failure)?;
    decoder.set_memory_limit(METADATA);
    Ok(decoder)
}

fn orientation(decoder: &mut WebPDecoder<impl BufRead + Seek>) -> Orientation {
    let metadata = Metadata {
        exif: decoder.exif_metadata().ok().flatten(),
        xmp: decoder.xmp_metadata().ok().flatten(),
    };
    metadata.orientation()
}

fn failure(error: WebPError) -> Failure {
    match error {
        // The file is cut, or cannot be read.
        WebPError::IoError(error) => return cut(error),
        error => ImageError::Decoding(DecodingError::new(ImageFormat::WebP.into(), error)),
    }
    .into()
}
