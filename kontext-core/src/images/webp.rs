//! Decoding of WebP.

use std::io::{Cursor, ErrorKind};

use image::ImageFormat;
use image::error::{DecodingError, ImageError};
use image_webp::{DecodingError as WebPError, WebPDecoder};

use super::color::Profile;
use super::decoded::{Channels, Depth, Samples};
use super::decoder::{Decoded, Failure, METADATA, PixelLimit, ends_early};
use super::exif::Metadata;
use crate::buffer;

/// Decodes a WebP. Of an animation it is the first frame.
pub(super) fn decode(file: &[u8], limit: PixelLimit) -> Result<Decoded, Failure> {
    // Metadata may follow the pixels, and would be missed. A padding byte at the end may be missing.
    let [_, _, _, _, size @ ..] = file.first_chunk::<8>().copied().unwrap_or_default();
    if file.len() + 1 < u32::from_le_bytes(size) as usize + 8 {
        return Err(ends_early());
    }
    let mut decoder = WebPDecoder::new(Cursor::new(file)).map_err(failure)?;
    decoder.set_memory_limit(METADATA);
    let (width, height) = decoder.dimensions();
    limit.check(width, height)?;
    // Metadata that cannot be read is none.
    let profile = decoder.icc_profile().ok().flatten().map(Profile::Icc);
    let metadata = Metadata {
        exif: decoder.exif_metadata().ok().flatten(),
        xmp: decoder.xmp_metadata().ok().flatten(),
    };
    let channels = if decoder.has_alpha() {
        Channels::Rgba
    } else {
        Channels::Rgb
    };
    let size = decoder
        .output_buffer_size()
        .ok_or_else(|| failure(WebPError::ImageTooLarge))?;
    let mut bytes = buffer::filled(0_u8, size, "the decoded image")?;
    decoder.read_image(&mut bytes).map_err(failure)?;
    Ok(Decoded {
        profile,
        turn: metadata.turn(),
        samples: Samples {
            width,
            height,
            channels,
            depth: Depth::Eight,
            bytes,
        },
    })
}

fn failure(error: WebPError) -> Failure {
    match error {
        // The bytes are in memory: the file is cut.
        WebPError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => ImageError::IoError(error),
        error => ImageError::Decoding(DecodingError::new(ImageFormat::WebP.into(), error)),
    }
    .into()
}
