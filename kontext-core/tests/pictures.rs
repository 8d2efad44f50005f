//! Images of unusual kinds, compared with Pillow's decoding of them (`images/make.py`).
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{ImageBuffer, ImageFormat, Luma, Rgb, RgbImage, Rgba};
use kontext_core::images;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures").join(name)
}

/// Returns the largest distance to Pillow's image, in levels.
fn distance(name: &str) -> u8 {
    let (stem, _) = name.rsplit_once('.').unwrap();
    let (ours, pillow) = (
        images::open(fixture(name)),
        images::open(fixture(&format!("{stem}.rgb.png"))),
    );
    let (ours, pillow) = (ours.unwrap(), pillow.unwrap());
    assert_eq!(
        ours,
        images::from_bytes(&std::fs::read(fixture(name)).unwrap()).unwrap()
    );
    assert_eq!(ours.dimensions(), pillow.dimensions(), "{name}");
    ours.as_raw()
        .iter()
        .zip(pillow.as_raw())
        .map(|(a, b)| a.abs_diff(*b))
        .max()
        .unwrap()
}

fn written(bytes: &[u8], name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn png<P: image::PixelWithColorType>(image: &ImageBuffer<P, Vec<P::Subpixel>>) -> Vec<u8>
where
    [P::Subpixel]: image::EncodableLayout,
{
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn reason(bytes: &[u8], name: &str) -> String {
    let (_folder, path) = written(bytes, name);
    let error = images::open(&path).unwrap_err().to_string();
    let start = format!("cannot use the image {}: ", path.display());
    assert!(error.starts_with(&start), "{error}");
    let reason = error[start.len()..].to_owned();
    // The same bytes in memory are refused for the same reason, without a path.
    let error = images::from_bytes(bytes).unwrap_err().to_string();
    assert_eq!(error, format!("cannot use the image: {reason}"));
    reason
}

#[test]
fn jpegs_in_four_colours_look_as_in_pillow() {
    // The two decoders differ in the rounding of an inverse transform, two products and a shift.
    for name in ["cmyk.jpg", "ycck.jpg"] {
        assert!(distance(name) <= 4, "{name}: {} levels", distance(name));
    }
}

#[test]
fn grey_and_progressive_jpegs_look_as_in_pillow() {
    for name in ["grey.jpg", "progressive.jpg"] {
        assert!(distance(name) <= 4, "{name}: {} levels", distance(name));
    }
}

#[test]
fn every_orientation_is_turned_as_in_pillow() {
    for orientation in 2..=8 {
        let name = format!("turned{orientation}.jpg");
        assert!(distance(&name) <= 4, "{name}: {} levels", distance(&name));
    }
    assert!(distance("rgba_turned.webp") <= 1);
}

#[test]
fn palettes_bits_and_transparency_look_as_in_pillow() {
    for name in ["palette.png", "bits.png"] {
        assert_eq!(distance(name), 0, "{name}");
    }
    // Pillow rounds the product with alpha twice.
    for name in ["palette_transparent.png", "grey_alpha.png", "rgba.png"] {
        assert!(distance(name) <= 1, "{name}: {} levels", distance(name));
    }
}

#[test]
fn sixteen_bits_are_rounded_to_eight() {
    // Not compared with Pillow, which makes 16-bit greys above 255 white.
    let levels = |value: u16| (f64::from(value) / 257.0).round() as u8;
    let value = |x: u32, y: u32| (x * 2731 + y * 517) as u16;
    let grey = ImageBuffer::from_fn(24, 16, |x, y| Luma([value(x, y)]));
    let rgb = ImageBuffer::from_fn(24, 16, |x, y| Rgb([value(x, y), value(y, x), 65_535 - value(x, y)]));
    let rgba = ImageBuffer::from_fn(24, 16, |x, y| Rgba([value(x, y), value(y, x), 300, 65_535_u16]));
    let read = |bytes: &[u8]| {
        let (_folder, path) = written(bytes, "a.png");
        images::open(path).unwrap()
    };
    let (grey, rgb, rgba) = (read(&png(&grey)), read(&png(&rgb)), read(&png(&rgba)));
    for (x, y) in [(0, 0), (3, 4), (23, 15), (11, 9)] {
        let (a, b) = (levels(value(x, y)), levels(value(y, x)));
        assert_eq!(grey.get_pixel(x, y).0, [a; 3]);
        assert_eq!(rgb.get_pixel(x, y).0, [a, b, levels(65_535 - value(x, y))]);
        assert_eq!(rgba.get_pixel(x, y).0, [a, b, 1]);
    }
}

#[test]
fn the_kind_is_told_by_content_and_not_by_name() {
    let (_folder, path) = written(&png(&RgbImage::from_pixel(3, 2, Rgb([1, 2, 3]))), "picture.jpg");
    assert_eq!(images::open(path).unwrap().dimensions(), (3, 2));
}

#[test]
fn a_file_that_is_no_image_is_named_with_what_to_give() {
    let remedy = "give a PNG, JPEG or WebP file";
    for bytes in [
        &b"hello"[..],
        b"",
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00",
        b"<svg></svg>",
    ] {
        // Regardless of its name.
        for name in ["a", "a.png", "a.jpg"] {
            assert!(reason(bytes, name).ends_with(remedy), "{}", reason(bytes, name));
        }
    }
}

#[test]
fn a_image_that_ends_early_is_refused() {
    for name in [
        "rgba.png",
        "palette.png",
        "progressive.jpg",
        "cmyk.jpg",
        "turned2.jpg",
        "rgba_turned.webp",
    ] {
        let whole = std::fs::read(fixture(name)).unwrap();
        // The checksum and the end of the smallest PNG are its last sixth.
        for share in 2..9 {
            let cut = &whole[..whole.len() * share / 10];
            let reason = reason(cut, name);
            assert!(
                reason.ends_with("; the file is damaged, fetch or save it again"),
                "{name}: {reason}"
            );
            assert!(!reason.contains('\n'), "{name}: {reason}");
        }
    }
}

#[test]
fn a_image_that_claims_to_be_huge_is_refused_before_memory_is_taken() {
    let mut bytes = png(&RgbImage::new(1, 1));
    bytes[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let crc = crc32fast::hash(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(
        reason(&bytes, "a.png"),
        "expected at most 178956970 pixels, got 65536x65536; make it smaller"
    );
}
