//! Marker segments of JPEG: ITU-T T.81, appendix B.

use super::decoded::Failure;

/// Markers, without the 0xff before them.
pub(super) const APP1: u8 = 0xe1;
pub(super) const APP14: u8 = 0xee;
pub(super) const SOF_SEQUENTIAL: [u8; 2] = [0xc0, 0xc1];
pub(super) const SOF_PROGRESSIVE: u8 = 0xc2;
/// Frames in lossless, hierarchical and arithmetic coding, and the conditions of the last.
pub(super) const OTHER_CODINGS: [u8; 11] = [0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf, 0xcc];
pub(super) const DHT: u8 = 0xc4;
pub(super) const RST: std::ops::RangeInclusive<u8> = 0xd0..=0xd7;
pub(super) const SOI: u8 = 0xd8;
pub(super) const EOI: u8 = 0xd9;
pub(super) const SOS: u8 = 0xda;
pub(super) const DRI: u8 = 0xdd;
pub(super) const TEM: u8 = 0x01;

/// A marker segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    /// The marker, without the 0xff before it.
    pub kind: u8,
    /// Place of the body in the file.
    pub start: usize,
    /// The content after the length.
    pub body: &'a [u8],
}

/// Returns the segments before the first scan.
pub(super) fn segments(file: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let segment = next_segment(file, at)?;
        at = segment.start + segment.body.len();
        (segment.kind != SOS && segment.kind != EOI).then_some(segment)
    })
}

/// Returns the first segment from `at` on; `None` at the end of the file. Bytes before a marker are skipped.
pub(super) fn next_segment(file: &[u8], mut at: usize) -> Option<Segment<'_>> {
    loop {
        let [mark, kind] = *file.get(at..)?.first_chunk()?;
        if mark != 0xff || kind == 0 || kind == 0xff {
            at += 1;
            continue;
        }
        let start = at + 2;
        if RST.contains(&kind) || [SOI, EOI, TEM].contains(&kind) {
            let body = &file[start..start];
            return Some(Segment { kind, start, body });
        }
        let length = usize::from(u16::from_be_bytes(*file.get(start..)?.first_chunk()?));
        let body = file.get(start + 2..start + length.max(2))?;
        return Some(Segment {
            kind,
            start: start + 2,
            body,
        });
    }
}

/// Checks that the file has one of the codings that are decoded.
pub(super) fn check_coding(file: &[u8]) -> Result<(), Failure> {
    match segments(file).find(|segment| OTHER_CODINGS.contains(&segment.kind)) {
        None => Ok(()),
        Some(_) => Err(Failure::Reason(
            "it is a JPEG in lossless, hierarchical or arithmetic coding, which is not supported; save it as PNG, or as \
             JPEG in baseline or progressive coding"
                .into(),
        )),
    }
}
