//! Orientation of an image by its metadata, as Pillow's `ImageOps.exif_transpose` finds it.

use exif::{In, Reader, Tag, Value};

use super::orientation::Orientation;
use crate::contain;

/// Metadata of an image file.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// EXIF, with or without "Exif\0\0" before its TIFF header.
    pub exif: Option<Vec<u8>>,
    /// XMP.
    pub xmp: Option<Vec<u8>>,
}

impl Metadata {
    /// Returns the orientation that shows the image upright: of EXIF, or of XMP if EXIF names none. A value that is no
    /// orientation, and metadata that cannot be read, turn nothing.
    pub(super) fn orientation(&self) -> Orientation {
        let exif = self.exif.as_deref().and_then(exif_orientation);
        let orientation = exif.or_else(|| xmp_orientation(self.xmp.as_deref()?));
        orientation.map_or(Orientation::None, Orientation::of_exif)
    }
}

/// Returns the value of EXIF's orientation tag, stored as any kind of number but bytes; 0, which is none, for another.
fn exif_orientation(exif: &[u8]) -> Option<u32> {
    const PREFIX: &[u8] = b"Exif\0\0";
    // Some programs write the prefix where it does not belong, or twice.
    let exif = exif.strip_prefix(PREFIX).unwrap_or(exif);
    let exif = exif.strip_prefix(PREFIX).unwrap_or(exif);
    let exif = exif.to_vec();
    // The parser goes on after a broken entry, such as a maker's note that another program moved.
    let parsed = contain(|| {
        let mut reader = Reader::new();
        reader.continue_on_error(true);
        reader
            .read_raw(exif)
            .or_else(|error| error.distill_partial_result(drop))
            .ok()
    });
    let parsed = parsed.ok()??;
    let number = match &parsed.get_field(Tag::Orientation, In::PRIMARY)?.value {
        Value::Short(values) => f64::from(*values.first()?),
        Value::Long(values) => f64::from(*values.first()?),
        Value::SByte(values) => f64::from(*values.first()?),
        Value::SShort(values) => f64::from(*values.first()?),
        Value::SLong(values) => f64::from(*values.first()?),
        Value::Float(values) => f64::from(*values.first()?),
        Value::Double(values) => *values.first()?,
        Value::Rational(values) => values.first()?.to_f64(),
        Value::SRational(values) => values.first()?.to_f64(),
        Value::Byte(_) | Value::Ascii(_) | Value::Undefined(..) | Value::Unknown(..) => 0.0,
    };
    Some(if number.fract() == 0.0 { number as u32 } else { 0 })
}

/// Returns the digit of `tiff:Orientation`, an attribute or an element of XMP.
fn xmp_orientation(xmp: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    let places = xmp.windows(NAME.len()).enumerate().filter(|(_, name)| *name == NAME);
    let mut values = places.filter_map(|(place, _)| match &xmp[place + NAME.len()..] {
        [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => Some(u32::from(digit - b'0')),
        _ => None,
    });
    values.next()
}
