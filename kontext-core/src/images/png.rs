//! Decoding of PNG.

use std::borrow::Cow;
use std::io::{BufRead, Cursor, ErrorKind, Read, Seek, SeekFrom};

use image::error::{DecodingError, ImageError, LimitError, LimitErrorKind, UnsupportedError, UnsupportedErrorKind};
use image::{ExtendedColorType, ImageFormat};
use png::{BitDepth, ColorType, Decoder, DecodingError as PngError, Info, Limits, Transformations};

use super::color::Profile;
use super::decoded::{Decoded, Failure, Header, METADATA, PixelLimit, cut};
use super::exif::Metadata;
use super::samples::{Channels, DECODED, Depth, Samples};
use crate::buffer;

/// Length of a chunk without its data: length, kind and checksum.
const FRAME: usize = 12;
const SIGNATURE: usize = 8;
const MAGIC: [u8; SIGNATURE] = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];
/// Chunks that say of an image how large it is and how it is turned, and those that the decoder needs to read them.
const HEADERS: [&[u8; 4]; 6] = [b"IHDR", b"PLTE", b"eXIf", b"tEXt", b"zTXt", b"iTXt"];
/// The start of a chunk of pixels.
const NO_PIXELS: [u8; 8] = [0, 0, 0, 0, b'I', b'D', b'A', b'T'];
/// The chunk at the end of a file, which is empty.
const END: [u8; FRAME] = [0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42, 0x60, 0x82];

/// Decodes a PNG. Of an animation it is the still image.
pub(super) fn decode(file: &[u8], limit: PixelLimit) -> Result<Decoded, Failure> {
    let file = with_end(file);
    let mut decoder = Decoder::new_with_limits(Cursor::new(file.as_ref()), Limits { bytes: METADATA });
    decoder.set_transformations(Transformations::EXPAND);
    let header = decoder.read_header_info().map_err(failure)?;
    let (width, height) = header.size();
    limit.check(width, height)?;
    // Rows are buffered, and are not metadata.
    let row = header.raw_row_length() + 8 * width as usize;
    decoder.set_limits(Limits {
        bytes: METADATA.saturating_add(row),
    });
    let mut reader = decoder.read_info().map_err(failure)?;
    let (color, bits) = reader.output_color_type();
    let channels = match color {
        ColorType::Grayscale => Channels::Grey,
        ColorType::GrayscaleAlpha => Channels::GreyAlpha,
        ColorType::Rgb => Channels::Rgb,
        ColorType::Rgba => Channels::Rgba,
        ColorType::Indexed => return Err(unsupported(bits)),
    };
    let depth = match bits {
        BitDepth::Eight => Depth::Eight,
        BitDepth::Sixteen => Depth::Sixteen,
        _ => return Err(unsupported(bits)),
    };
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| failure(PngError::LimitsExceeded))?;
    let mut bytes = buffer::filled(0_u8, size, DECODED)?;
    reader.next_frame(&mut bytes).map_err(failure)?;
    // Text may follow the pixels; what is wrong with it does not matter.
    let _ = reader.finish();
    let info = reader.info();
    Ok(Decoded {
        profile: profile(info),
        orientation: metadata(info).orientation(),
        samples: Samples {
            width,
            height,
            channels,
            depth,
            bytes,
        },
    })
}

/// Reads the headers of a PNG, and the metadata, which may follow the pixels.
pub(super) fn header(mut file: impl BufRead + Seek) -> Result<Header, Failure> {
    let mut short = buffer::copied(&MAGIC, "the headers of an image")?;
    let mut start = [0; 8];
    file.seek(SeekFrom::Start(MAGIC.len() as u64)).map_err(cut)?;
    while file.read_exact(&mut start).is_ok() {
        let [a, b, c, d, kind @ ..] = start;
        let data = u64::from(u32::from_be_bytes([a, b, c, d]));
        if HEADERS.contains(&&kind) && short.len() as u64 + data <= METADATA as u64 {
            short.extend_from_slice(&start);
            file.by_ref().take(data + 4).read_to_end(&mut short).map_err(cut)?;
        } else if &kind == b"IEND" {
            break;
        } else {
            file.seek_relative(data as i64 + 4).map_err(cut)?;
        }
    }
    short.extend_from_slice(&NO_PIXELS);
    let decoder = Decoder::new_with_limits(Cursor::new(short), Limits { bytes: usize::MAX });
    let reader = decoder.read_info().map_err(failure)?;
    let (width, height) = reader.info().size();
    let orientation = metadata(reader.info()).orientation();
    Ok(Header {
        width,
        height,
        orientation,
    })
}

/// Returns a file whose chunks after the pixels are missing or cut with an end, as other programs open it; any other
/// file as it is.
fn with_end(file: &[u8]) -> Cow<'_, [u8]> {
    let mut at = SIGNATURE;
    // The end of the last chunk of pixels whose data is whole.
    let mut pixels = None;
    while let Some(&[a, b, c, d, ref kind @ ..]) = file.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let data = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some(next) = at.checked_add(FRAME).and_then(|end| end.checked_add(data)) else {
            return Cow::Borrowed(file);
        };
        if kind == b"IEND" && file.len() >= next {
            return Cow::Borrowed(file);
        }
        if kind == b"IDAT" {
            // A cut checksum is made up for.
            if file.len() < next - 4 {
                return Cow::Borrowed(file);
            }
            pixels = Some((at, next));
        }
        at = next;
    }
    let Some((start, end)) = pixels else {
        return Cow::Borrowed(file);
    };
    let Ok(mut whole) = buffer::with_room(end + END.len(), "the image file") else {
        return Cow::Borrowed(file);
    };
    whole.extend_from_slice(&file[..end - 4]);
    let checksum = crc32fast::hash(&file[start + 4..end - 4]).to_be_bytes();
    whole.extend_from_slice(file.get(end - 4..end).unwrap_or(&checksum));
    whole.extend_from_slice(&END);
    Cow::Owned(whole)
}

/// Returns the description of the colours. Of gAMA and cHRM nothing is taken, as in Pillow: many old files hold
/// values that do not describe them.
fn profile(info: &Info<'_>) -> Option<Profile> {
    if let Some(icc) = &info.icc_profile {
        return Some(Profile::Icc(icc.to_vec()));
    }
    let points = info.coding_independent_code_points?;
    (points.matrix_coefficients == 0 && points.is_video_full_range_image)
        .then_some(Profile::Cicp(points.color_primaries, points.transfer_function))
}

/// Returns EXIF and XMP, which old programs store as text.
fn metadata(info: &Info<'_>) -> Metadata {
    let exif = info.exif_metadata.as_ref().map(|exif| exif.to_vec());
    Metadata {
        exif: exif.or_else(|| hexadecimal(&text(info, "Raw profile type exif")?)),
        xmp: text(info, "XML:com.adobe.xmp").map(String::into_bytes),
    }
}

/// Returns the text of a keyword, of any of the three kinds of text.
fn text(info: &Info<'_>, keyword: &str) -> Option<String> {
    let international = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword);
    let compressed = info
        .compressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == keyword);
    let plain = info
        .uncompressed_latin1_text
        .iter()
        .find(|chunk| chunk.keyword == keyword);
    if let Some(mut chunk) = international.cloned() {
        chunk.decompress_text_with_limit(METADATA).ok()?;
        chunk.get_text().ok()
    } else if let Some(mut chunk) = compressed.cloned() {
        chunk.decompress_text_with_limit(METADATA).ok()?;
        chunk.get_text().ok()
    } else {
        plain.map(|chunk| chunk.text.clone())
    }
}

/// Decodes ImageMagick's form: an empty line, the kind, the length, then hexadecimal lines.
fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .lines()
        .skip(3)
        .flat_map(str::chars)
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn unsupported(bits: BitDepth) -> Failure {
    let kind = UnsupportedErrorKind::Color(ExtendedColorType::Unknown(bits as u8));
    ImageError::Unsupported(UnsupportedError::from_format_and_kind(ImageFormat::Png.into(), kind)).into()
}

fn failure(error: PngError) -> Failure {
    match error {
        // The bytes are in memory: the file is cut.
        PngError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => ImageError::IoError(error),
        PngError::LimitsExceeded => ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory)),
        error => ImageError::Decoding(DecodingError::new(ImageFormat::Png.into(), error)),
    }
    .into()
}
