//! Sizes of image files by their headers.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use kontext_core::images;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures")
}

#[test]
fn the_dimensions_of_every_kind_of_file_are_those_of_the_opened_image() {
    let copies = tempfile::tempdir().unwrap();
    let mut turned = 0;
    for folder in [folder(), folder().join("profiles")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let Ok(image) = images::open(&path) else { continue };
            assert_eq!(images::dimensions(&path).unwrap(), image.dimensions(), "{path:?}");
            turned += u32::from(image::image_dimensions(&path).unwrap() != image.dimensions());
            // By content, in spite of a wrong name.
            let copy = copies.path().join("a.gif");
            std::fs::copy(&path, &copy).unwrap();
            assert_eq!(images::dimensions(&copy).unwrap(), image.dimensions(), "{path:?}");
        }
    }
    assert!(turned >= 5, "{turned}");
}

#[test]
fn metadata_after_the_pixels_of_a_png_turns_its_dimensions() {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = RgbImage::from_pixel(30, 20, Rgb([1, 2, 3]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    let mut bytes = bytes.into_inner();
    let exif = b"eXIfII*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let length = (exif.len() as u32 - 4).to_be_bytes();
    let checksum = crc32fast::hash(exif).to_be_bytes();
    let end = bytes.len() - 12;
    bytes.splice(end..end, [&length[..], exif, &checksum].concat());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(images::open(&file).unwrap().dimensions(), (20, 30));
    assert_eq!(images::dimensions(&file).unwrap(), (20, 30));
}

#[test]
fn files_without_headers_are_refused_as_by_opening_them() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |bytes: &[u8]| std::fs::write(&file, bytes).unwrap();
    let pictures = ["rgba.png", "turned6.jpg", "rgba_turned.webp"];
    for (bytes, reason) in [
        (&b""[..], "the file is empty"),
        (b"hello", "it is a text, not an image"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff", "damaged"),
        (b"RIFF\x40\0\0\0WEBP", "damaged"),
    ] {
        write(bytes);
        let error = images::dimensions(&file).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot use the image ") && error.contains(reason),
            "{error}"
        );
    }
    for name in pictures {
        let whole = std::fs::read(folder().join(name)).unwrap();
        // A whole file, or an error; never a panic.
        for length in 0..whole.len().min(2000) {
            write(&whole[..length]);
            let _ = images::dimensions(&file);
        }
    }
    let missing = images::dimensions("missing.png").unwrap_err().to_string();
    assert_eq!(missing, "cannot access missing.png");
}

#[test]
fn pixels_stay_those_of_their_version_of_decoding() {
    // A file that gives other pixels is a reason to raise `DECODING`, without which caches keep the old ones.
    let mut sum = crc32fast::Hasher::new();
    let names = [
        "bits.png",
        "grey_alpha.png",
        "palette_transparent.png",
        "rgba.png",
        "rgba_turned.webp",
    ];
    for name in names {
        let image = images::open(folder().join(name)).unwrap();
        sum.update(&image);
        sum.update(&images::resize(&image, 7, 9).unwrap());
    }
    assert_eq!((images::DECODING, sum.finalize()), (1, 4_203_593_733));
}
