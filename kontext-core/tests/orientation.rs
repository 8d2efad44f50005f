//! Orientation of images by their metadata, in every form that Pillow's `ImageOps.exif_transpose` reads.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage, imageops};
use kontext_core::images;

fn base() -> RgbImage {
    RgbImage::from_fn(24, 16, |x, y| {
        Rgb([(x * 10) as u8, (y * 15) as u8, (255 - x * 5 - y * 5) as u8])
    })
}

/// Encodes the base image, with EXIF if it is not empty.
fn encoded(mut encoder: impl ImageEncoder, exif: &[u8]) {
    if !exif.is_empty() {
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
    }
    encoder
        .write_image(base().as_raw(), 24, 16, ExtendedColorType::Rgb8)
        .unwrap();
}

fn jpeg(exif: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encoded(JpegEncoder::new_with_quality(&mut bytes, 95), exif);
    bytes
}

fn png(exif: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encoded(PngEncoder::new(&mut bytes), exif);
    bytes
}

fn webp(exif: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encoded(WebPEncoder::new_lossless(&mut bytes), exif);
    bytes
}

/// Returns EXIF of one tag: its type, count and the four bytes of its value, and data after the directory.
fn exif(big: bool, kind: u16, count: u32, value: [u8; 4], data: &[u8]) -> Vec<u8> {
    let u16 = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let u32 = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let start: &[u8] = if big { b"MM\0*" } else { b"II*\0" };
    let entry = [&u16(0x0112)[..], &u16(kind), &u32(count), &value].concat();
    [start, &u32(8), &u16(1), &entry, &u32(0), data].concat()
}

/// Returns EXIF whose orientation is an unsigned short.
fn short(orientation: u8) -> Vec<u8> {
    exif(false, 3, 1, [orientation, 0, 0, 0], &[])
}

/// Checks that the file shows the base image of its format turned by a quarter, or as it is.
fn assert_turned(file: &[u8], plain: &[u8], turned: bool, form: &str) {
    let plain = images::from_bytes(plain).unwrap();
    let expected = if turned { imageops::rotate90(&plain) } else { plain };
    assert!(images::from_bytes(file).unwrap() == expected, "{form}");
}

#[test]
fn an_orientation_of_any_numeric_type_and_byte_order_is_applied() {
    // Short, long, signed byte, signed short, signed long, float.
    for (kind, little, big) in [
        (3, [6, 0, 0, 0], [0, 6, 0, 0]),
        (4, [6, 0, 0, 0], [0, 0, 0, 6]),
        (6, [6, 0, 0, 0], [6, 0, 0, 0]),
        (8, [6, 0, 0, 0], [0, 6, 0, 0]),
        (9, [6, 0, 0, 0], [0, 0, 0, 6]),
        (11, 6_f32.to_le_bytes(), 6_f32.to_be_bytes()),
    ] {
        for (is_big, value) in [(false, little), (true, big)] {
            let exif = exif(is_big, kind, 1, value, &[]);
            for (file, plain) in [
                (jpeg(&exif), jpeg(&[])),
                (png(&exif), png(&[])),
                (webp(&exif), webp(&[])),
            ] {
                assert_turned(&file, &plain, true, &format!("type {kind}, big {is_big}"));
            }
        }
    }
    // A fraction and a double, whose bytes follow the directory, and two values of which the first counts.
    let fraction = [6_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat();
    assert_turned(
        &png(&exif(false, 5, 1, [26, 0, 0, 0], &fraction)),
        &png(&[]),
        true,
        "fraction",
    );
    let double = 6_f64.to_le_bytes();
    assert_turned(
        &png(&exif(false, 12, 1, [26, 0, 0, 0], &double)),
        &png(&[]),
        true,
        "double",
    );
    assert_turned(
        &png(&exif(false, 3, 2, [6, 0, 1, 0], &[])),
        &png(&[]),
        true,
        "two values",
    );
}

#[test]
fn a_value_that_is_no_orientation_turns_nothing() {
    for (kind, value) in [
        (3, [0, 0, 0, 0]),
        (3, [9, 0, 0, 0]),
        // 6 in the lower 16 bits only.
        (4, [6, 0, 1, 0]),
        (9, [0xfa, 0xff, 0xff, 0xff]),
        (11, 6.5_f32.to_le_bytes()),
        (2, *b"6\0\0\0"),
        // A byte, which Pillow takes for no number.
        (1, [6, 0, 0, 0]),
    ] {
        assert_turned(
            &png(&exif(false, kind, 1, value, &[])),
            &png(&[]),
            false,
            &format!("type {kind}"),
        );
    }
    for broken in [&b"II*\0"[..], b"Exif\0\0", b"JUNKJUNKJUNKJUNK", &short(6)[..20]] {
        assert_turned(&png(broken), &png(&[]), false, "broken");
    }
}

/// Inserts segments after the start mark.
fn with_segments(file: &[u8], segments: &[(u8, &[u8])]) -> Vec<u8> {
    let mut result = file[..2].to_vec();
    for (kind, body) in segments {
        let length = (body.len() as u16 + 2).to_be_bytes();
        result.extend([&[0xff, *kind], &length[..], body].concat());
    }
    [&result, &file[2..]].concat()
}

fn xmp(text: &str) -> Vec<u8> {
    [b"http://ns.adobe.com/xap/1.0/\0", text.as_bytes()].concat()
}

#[test]
fn exif_is_found_among_other_segments_and_with_a_doubled_prefix() {
    let exif = [b"Exif\0\0", &short(6)[..]].concat();
    let doubled = [b"Exif\0\0", &exif[..]].concat();
    let camera = xmp("<x:xmpmeta/>");
    let forms: [&[(u8, &[u8])]; 4] = [
        &[(0xe1, &exif)],
        &[(0xe1, &camera), (0xfe, b"comment"), (0xe5, &[0xff; 300]), (0xe1, &exif)],
        &[(0xe1, &doubled)],
        // Cut into two segments.
        &[(0xe1, &exif[..20]), (0xe1, &[b"Exif\0\0", &exif[20..]].concat())],
    ];
    for form in forms {
        assert_turned(&with_segments(&jpeg(&[]), form), &jpeg(&[]), true, "segments");
    }
}

#[test]
fn xmp_names_the_orientation_where_exif_does_not() {
    let (attribute, element) = (
        xmp("<a tiff:Orientation=\"6\"/>"),
        xmp("<tiff:Orientation>6</tiff:Orientation>"),
    );
    for segment in [&attribute, &element] {
        assert_turned(&with_segments(&jpeg(&[]), &[(0xe1, segment)]), &jpeg(&[]), true, "XMP");
        let upright = [b"Exif\0\0", &short(1)[..]].concat();
        let both = with_segments(&jpeg(&[]), &[(0xe1, segment), (0xe1, &upright)]);
        assert_turned(&both, &jpeg(&[]), false, "EXIF first");
        let without = [b"Exif\0\0", &exif(false, 3, 1, [6, 0, 0, 0], &[])[..]].concat();
        // The tag is another one.
        let without = without
            .iter()
            .enumerate()
            .map(|(place, byte)| if place == 16 { 0x0f } else { *byte });
        let both = with_segments(&jpeg(&[]), &[(0xe1, segment), (0xe1, &without.collect::<Vec<_>>())]);
        assert_turned(&both, &jpeg(&[]), true, "EXIF without orientation");
    }
}

/// Encodes the base image as a PNG with text.
fn png_with(text: impl FnOnce(&mut png::Encoder<'_, &mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 24, 16);
    encoder.set_color(png::ColorType::Rgb);
    text(&mut encoder);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(base().as_raw()).unwrap();
    writer.finish().unwrap();
    bytes
}

#[test]
fn a_png_may_hold_exif_and_xmp_as_text() {
    let hexadecimal: String = short(6).iter().map(|byte| format!("{byte:02x}")).collect();
    let raw = format!(
        "\nexif\n{:8}\n{}\n{}\n",
        hexadecimal.len() / 2,
        &hexadecimal[..36],
        &hexadecimal[36..]
    );
    let name = "Raw profile type exif";
    let forms = [
        png_with(|png| png.add_text_chunk(name.into(), raw.clone()).unwrap()),
        png_with(|png| png.add_ztxt_chunk(name.into(), raw.clone()).unwrap()),
        png_with(|png| {
            png.add_itxt_chunk("XML:com.adobe.xmp".into(), "<a tiff:Orientation=\"6\"/>".into())
                .unwrap();
        }),
    ];
    for file in forms {
        assert_turned(&file, &png(&[]), true, "text");
    }
    let odd = png_with(|png| png.add_text_chunk(name.into(), format!("{raw}7")).unwrap());
    assert_turned(&odd, &png(&[]), false, "half a byte");
}
