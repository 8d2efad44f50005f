//! Formats of image files, known by their first bytes, and the names of other kinds of file.

use std::str::from_utf8;

/// Bytes of a file from which its format is known.
pub(super) const HEAD: usize = 4096;

/// A format that is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP.
    WebP,
}

impl Format {
    /// Returns the format of the file that begins with `head`; the error says what the file is instead, and the
    /// remedy.
    pub(super) fn of(head: &[u8]) -> Result<Self, String> {
        match head {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Ok(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Self::WebP),
            _ => Err(format!("{}; give a PNG, JPEG or WebP file", description(head))),
        }
    }
}

/// First bytes of images in formats that are not decoded.
const IMAGES: [(&[u8], &str); 18] = [
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF (or camera raw)"),
    (b"MM\0*", "a TIFF (or camera raw)"),
    (b"II+\0", "a TIFF"),
    (b"MM\0+", "a TIFF"),
    (b"FUJIFILMCCD-RAW", "a raw file of a camera"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"8BPS", "a Photoshop document"),
    (b"gimp xcf", "a GIMP document"),
    (b"v/1\x01", "an OpenEXR"),
    (b"#?RADIANCE", "a Radiance HDR"),
    (b"qoif", "a QOI"),
    (b"DDS ", "a DDS"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"farbfeld", "a farbfeld"),
];

/// First bytes of files that are no images.
const OTHERS: [(&[u8], &str); 15] = [
    (b"%PDF-", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
    (b"\0\0\x01\xba", "a video (MPEG)"),
    (b"FLV\x01", "a video (FLV)"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"GGUF", "a GGUF file of weights"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
];

/// Says what a file is that begins with `head` and has none of the formats that are decoded.
fn description(head: &[u8]) -> String {
    if head.is_empty() {
        return "the file is empty".into();
    }
    if head.starts_with(b"\x89PNG") {
        return "it was a PNG, whose first bytes were changed as by a transfer in text mode: fetch it again".into();
    }
    if let Some((_, name)) = IMAGES.iter().find(|(start, _)| head.starts_with(start)) {
        return format!("it is {name} image, which is not supported");
    }
    if let [_, _, _, _, b'f', b't', b'y', b'p', brands @ ..] = head {
        return media(head, brands);
    }
    if let [b'R', b'I', b'F', b'F', _, _, _, _, kind @ ..] = head {
        let name = if kind.starts_with(b"AVI ") {
            "a video (AVI)"
        } else {
            "a RIFF file"
        };
        return format!("it is {name}, not an image");
    }
    // Two letters are too short to be sure of, but a size of 26 bytes or more follows.
    if matches!(head, [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..]) {
        return "it is a BMP image, which is not supported".into();
    }
    if let Some((_, name)) = OTHERS.iter().find(|(start, _)| head.starts_with(start)) {
        return format!("it is {name}, not an image");
    }
    if head.len() > 64 && head.iter().all(|byte| *byte == 0) {
        return "it begins with zeros only, as the file of an interrupted transfer: fetch it again".into();
    }
    text(head).unwrap_or_else(|| "its format is not known".into())
}

/// Says what a file of the ISO base media format is, by its brands.
fn media(head: &[u8], brands: &[u8]) -> String {
    let end = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let brands = &brands[..brands.len().min(end.saturating_sub(8).max(4))];
    // The first brand, its version, and the other brands with which the file is compatible.
    let has = |names: &[&[u8; 4]]| {
        let mut all = brands.chunks_exact(4).enumerate().filter(|(place, _)| *place != 1);
        all.any(|(_, brand)| names.iter().any(|name| brand == *name))
    };
    if has(&[b"avif", b"avis"]) {
        "it is an AVIF image, which is not supported".into()
    } else if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) {
        "it is a HEIC image (as of an iPhone), which is not supported".into()
    } else if has(&[b"crx "]) {
        "it is a raw file of a camera, which is not supported".into()
    } else if has(&[b"M4A ", b"M4B "]) {
        "it is a sound file (M4A), not an image".into()
    } else {
        "it is a video (MP4 or QuickTime), not an image".into()
    }
}

/// Says what a text file is; `None` for bytes that are no text.
fn text(head: &[u8]) -> Option<String> {
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return Some("it is a text (UTF-16), not an image".into());
    }
    let valid = match from_utf8(head) {
        Ok(text) => text,
        // A letter may be cut at the end of the head.
        Err(error) if head.len() - error.valid_up_to() < 4 => from_utf8(&head[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if valid
        .chars()
        .any(|c| c.is_control() && !c.is_whitespace() && c != '\u{1b}')
    {
        return None;
    }
    let lower = valid.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    let name = if lower.starts_with("version https://git-lfs") {
        return Some("it is a Git LFS pointer, not the image itself: fetch that with `git lfs pull`".into());
    } else if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        "a web page (HTML), not the image itself"
    } else if lower.contains("<svg") {
        return Some("it is an SVG image, which is not supported".into());
    } else if lower.starts_with("<?xml") {
        "an XML file, not an image"
    } else if lower.starts_with(['{', '[']) {
        "a JSON file, not an image"
    } else if lower.is_empty() {
        "blank, not an image"
    } else {
        "a text, not an image"
    };
    Some(format!("it is {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(head: &[u8]) -> String {
        Format::of(head).unwrap_err()
    }

    #[test]
    fn a_file_that_is_no_supported_image_is_named() {
        let files: [(&[u8], &str); 27] = [
            (b"", "the file is empty"),
            (b"GIF89a\x01\0\x01\0\0\0\0", "it is a GIF image, which is not supported"),
            (
                b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
                "it is a HEIC image (as of an iPhone), which is not supported",
            ),
            (
                b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",
                "it is a HEIC image (as of an iPhone), which is not supported",
            ),
            (
                b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
                "it is an AVIF image, which is not supported",
            ),
            (
                b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif",
                "it is an AVIF image, which is not supported",
            ),
            (
                b"\0\0\0\x14ftypqt  \0\0\0\0qt  \0\0\0\x08heic",
                "it is a video (MP4 or QuickTime), not an image",
            ),
            (
                b"\0\0\0\x18ftypisom\0\0\x02\0isommp42",
                "it is a video (MP4 or QuickTime), not an image",
            ),
            (
                b"II*\0\x08\0\0\0",
                "it is a TIFF (or camera raw) image, which is not supported",
            ),
            (
                b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0",
                "it is a BMP image, which is not supported",
            ),
            (b"BM is the name of a road", "it is a text, not an image"),
            (b"RIFF\x10\0\0\0AVI LIST", "it is a video (AVI), not an image"),
            (b"%PDF-1.7\n%\xe2\xe3", "it is a PDF document, not an image"),
            (b"PK\x03\x04\x14\0", "it is a ZIP archive, not an image"),
            (
                b"<!DOCTYPE html><html>",
                "it is a web page (HTML), not the image itself",
            ),
            (
                b"\xef\xbb\xbf\n<html lang=en>",
                "it is a web page (HTML), not the image itself",
            ),
            (
                b"<svg xmlns='http://www.w3.org/2000/svg'/>",
                "it is an SVG image, which is not supported",
            ),
            (
                b"<?xml version='1.0'?>\n<svg/>",
                "it is an SVG image, which is not supported",
            ),
            (b"<?xml version='1.0'?><feed/>", "it is an XML file, not an image"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
                "it is a Git LFS pointer, not the image itself: fetch that with `git lfs pull`",
            ),
            (b"{\"error\": \"not found\"}", "it is a JSON file, not an image"),
            (b"hello", "it is a text, not an image"),
            ("grüße €".as_bytes(), "it is a text, not an image"),
            (b"\xff\xfeh\0e\0", "it is a text (UTF-16), not an image"),
            (b" \n", "it is blank, not an image"),
            (
                b"\x89PNG\n\x1a\n\0\0",
                "it was a PNG, whose first bytes were changed as by a transfer in text mode: fetch it again",
            ),
            (b"\x01\x02\x03\x9f", "its format is not known"),
        ];
        for (head, expected) in files {
            assert_eq!(reason(head), format!("{expected}; give a PNG, JPEG or WebP file"));
        }
        assert!(reason(&[0; 100]).starts_with("it begins with zeros only"));
    }

    #[test]
    fn a_letter_cut_at_the_end_of_the_head_is_still_text() {
        let long = "é".repeat(HEAD);
        assert!(reason(&long.as_bytes()[..HEAD - 1]).starts_with("it is a text"));
    }

    #[test]
    fn the_start_of_any_file_is_described_without_a_panic() {
        for length in 0..20 {
            for byte in 0..=255 {
                let _ = Format::of(&vec![byte; length]);
                let mut head = b"\0\0\0\0ftyp".to_vec();
                head.extend(vec![byte; length]);
                let _ = Format::of(&head);
            }
        }
    }
}
