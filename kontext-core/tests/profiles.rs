//! Images with colour profiles, compared with Pillow's ImageCms (`pictures/profiles.py`).
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use kontext_core::images::{self, EmbeddedProfile, OpenOptions};
use lcms2::{CIExyY, CIExyYTRIPLE, Profile, ToneCurve};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/pictures/profiles")
        .join(name)
}

/// Returns the largest distance to Pillow's image, in levels.
fn distance(name: &str) -> u8 {
    let (stem, _) = name.rsplit_once('.').unwrap();
    let ours = images::open(fixture(name)).unwrap();
    let pillow = images::open(fixture(&format!("{stem}.rgb.png"))).unwrap();
    assert_eq!(ours.dimensions(), pillow.dimensions(), "{name}");
    let pairs = ours.as_raw().iter().zip(pillow.as_raw());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// Encodes samples as a PNG with a profile.
fn png_of(size: [u32; 2], color: png::ColorType, depth: png::BitDepth, samples: &[u8], icc: Option<&[u8]>) -> Vec<u8> {
    let mut info = png::Info::with_size(size[0], size[1]);
    info.color_type = color;
    info.bit_depth = depth;
    info.icc_profile = icc.map(|icc| icc.to_vec().into());
    let mut bytes = Vec::new();
    let mut writer = png::Encoder::with_info(&mut bytes, info)
        .unwrap()
        .write_header()
        .unwrap();
    writer.write_image_data(samples).unwrap();
    writer.finish().unwrap();
    bytes
}

fn rgb8(samples: &[u8], icc: Option<&[u8]>) -> Vec<u8> {
    let size = [samples.len() as u32 / 3, 1];
    png_of(size, png::ColorType::Rgb, png::BitDepth::Eight, samples, icc)
}

/// Returns the profile in a PNG of the fixtures.
fn profile_of(name: &str) -> Vec<u8> {
    let file = std::fs::read(fixture(name)).unwrap();
    let reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    reader.info().icc_profile.clone().unwrap().into_owned()
}

fn decoded(bytes: &[u8]) -> Vec<u8> {
    images::from_bytes(bytes).unwrap().into_raw()
}

#[test]
fn every_kind_of_profile_in_every_container_converts_as_in_pillow() {
    for name in [
        "p3.png",
        "p3_lossless.webp",
        "p3_palette.png",
        "p3_alpha.png",
        "adobe.png",
        "tables.png",
        "lut8.png",
        "lut16.png",
        "lut_v4.png",
        "grey.png",
        "grey_alpha.png",
        "grey_table.png",
    ] {
        assert_eq!(distance(name), 0, "{name}");
    }
    // The two decoders of JPEG may differ by a level, which a profile may make two.
    for name in [
        "adobe_blocks.jpg",
        "grey_blocks.jpg",
        "grey_rgb.jpg",
        "cmyk.jpg",
        "cmyk16.jpg",
        "ycck.jpg",
    ] {
        assert!(distance(name) <= 2, "{name}: {} levels", distance(name));
    }
}

#[test]
fn colours_of_display_p3_become_those_of_srgb_unless_profiles_are_ignored() {
    let samples = [200, 120, 40, 60, 180, 90];
    let file = rgb8(&samples, Some(&profile_of("p3.png")));
    assert_eq!(decoded(&file), [213, 115, 0, 0, 183, 78]);
    let raw = OpenOptions::new().embedded_profile(EmbeddedProfile::Ignore);
    assert_eq!(raw.decode(&file).unwrap().into_raw(), samples);
    // A mask is data.
    let grey = OpenOptions::new().decode_mask(&file).unwrap();
    let unprofiled = OpenOptions::new().decode_mask(&rgb8(&samples, None)).unwrap();
    assert_eq!(grey, unprofiled);
}

#[test]
fn a_profile_in_segments_of_any_order_is_put_together() {
    let file = std::fs::read(fixture("adobe_blocks.jpg")).unwrap();
    let name = b"ICC_PROFILE\0";
    let body = file.windows(name.len()).position(|window| window == name).unwrap();
    let length = usize::from(u16::from_be_bytes([file[body - 2], file[body - 1]]));
    let icc = &file[body + 14..body - 2 + length];
    let segment = |number: u8, part: &[u8]| {
        let length = (part.len() + 16) as u16;
        let head = [&[0xff, 0xe2], &length.to_be_bytes()[..], name, &[number, 3]].concat();
        [&head, part].concat()
    };
    let parts: Vec<&[u8]> = icc.chunks(icc.len().div_ceil(3)).collect();
    let split = [segment(3, parts[2]), segment(1, parts[0]), segment(2, parts[1])].concat();
    let whole = [&file[..body - 4], &split, &file[body - 2 + length..]].concat();
    assert_eq!(decoded(&whole), decoded(&file));
    // With a part missing there is no profile.
    let missing = [&file[..body - 4], &split[..split.len() / 3], &file[body - 2 + length..]].concat();
    let raw = OpenOptions::new().embedded_profile(EmbeddedProfile::Ignore);
    assert_eq!(decoded(&missing), raw.decode(&file).unwrap().into_raw());
}

/// Returns a profile with sRGB's primaries and one gamma.
fn gamma(gamma: f64) -> Vec<u8> {
    let point = |x: f64, y: f64| CIExyY { x, y, Y: 1.0 };
    let primaries = CIExyYTRIPLE {
        Red: point(0.64, 0.33),
        Green: point(0.30, 0.60),
        Blue: point(0.15, 0.06),
    };
    let curve = ToneCurve::new(gamma);
    let profile = Profile::new_rgb(&point(0.3127, 0.3290), &primaries, &[&curve, &curve, &curve]);
    profile.unwrap().icc().unwrap()
}

#[test]
fn sixteen_bits_are_converted_before_they_are_rounded() {
    let linear = gamma(1.0);
    let words: Vec<u16> = (0..64_u16).map(|step| step * 20).collect();
    let encoded = |word: u16| {
        let value = f64::from(word) / 65_535.0;
        let value = if value <= 0.003_130_8 {
            value * 12.92
        } else {
            1.055 * value.powf(1.0 / 2.4) - 0.055
        };
        (value * 255.0).round() as u8
    };
    let three = |levels: &[u16]| levels.iter().flat_map(|word| [*word; 3]).collect::<Vec<u16>>();
    let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let rgb = png_of(
        [64, 1],
        png::ColorType::Rgb,
        png::BitDepth::Sixteen,
        &bytes(&three(&words)),
        Some(&linear),
    );
    let grey = png_of(
        [64, 1],
        png::ColorType::Grayscale,
        png::BitDepth::Sixteen,
        &bytes(&words),
        Some(&linear),
    );
    for file in [rgb, grey] {
        let levels = decoded(&file);
        for (levels, word) in levels.chunks(3).zip(&words) {
            let expected = encoded(*word);
            assert!(
                levels.iter().all(|level| level.abs_diff(expected) <= 1),
                "{word}: {levels:?}"
            );
        }
        // Rounded first, these would be six levels.
        let mut distinct: Vec<u8> = levels.chunks(3).map(|pixel| pixel[0]).collect();
        distinct.dedup();
        assert!(distinct.len() > 30, "{distinct:?}");
    }
}

#[test]
fn an_image_with_a_profile_of_srgb_keeps_its_exact_samples() {
    let all: Vec<u8> = (0..=255)
        .flat_map(|level: u8| [level, 255 - level, level / 2])
        .collect();
    let mut srgb = Profile::new_srgb();
    srgb.set_version(2.1);
    for icc in [Profile::new_srgb().icc().unwrap(), srgb.icc().unwrap()] {
        assert_eq!(decoded(&rgb8(&all, Some(&icc))), all);
    }
}

#[test]
fn a_damaged_or_foreign_profile_leaves_the_samples_as_they_are() {
    let samples = [200, 120, 40, 60, 180, 90];
    let p3 = profile_of("p3.png");
    let grey = profile_of("grey.png");
    let mut zeros = p3.clone();
    zeros[128..].fill(0);
    let mut endless = p3.clone();
    endless[128..132].fill(0xff);
    for icc in [&p3[..200], &p3[..100], b"icc", &grey[..], &zeros, &endless, &[7; 400]] {
        assert_eq!(decoded(&rgb8(&samples, Some(icc))), samples);
    }
}

/// Inserts a chunk before the pixels.
fn with_chunk(file: &[u8], kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let place = file.windows(4).position(|window| window == b"IDAT").unwrap() - 4;
    let body = [&kind[..], data].concat();
    let length = (data.len() as u32).to_be_bytes();
    let checksum = crc32fast::hash(&body).to_be_bytes();
    [&file[..place], &length, &body, &checksum, &file[place..]].concat()
}

#[test]
fn code_points_count_as_a_profile_and_gamma_chunks_do_not() {
    let samples = [200, 120, 40, 60, 180, 90];
    let file = rgb8(&samples, None);
    let p3 = decoded(&with_chunk(&file, b"cICP", &[12, 13, 0, 1]));
    let expected = decoded(&rgb8(&samples, Some(&profile_of("p3.png"))));
    assert!(p3.iter().zip(&expected).all(|(a, b)| a.abs_diff(*b) <= 1), "{p3:?}");
    // sRGB, a reserved value, brightness beyond sRGB, and not the full range.
    for points in [
        [1, 13, 0, 1],
        [3, 13, 0, 1],
        [9, 16, 0, 1],
        [9, 18, 0, 1],
        [12, 13, 0, 0],
    ] {
        assert_eq!(decoded(&with_chunk(&file, b"cICP", &points)), samples, "{points:?}");
    }
    assert_eq!(
        decoded(&with_chunk(&file, b"gAMA", &100_000_u32.to_be_bytes())),
        samples
    );
}

#[test]
fn rows_on_many_threads_convert_as_one() {
    let icc = profile_of("lut16.png");
    let image = RgbImage::from_fn(64, 500, |x, y| Rgb([(x * 4) as u8, (y / 2) as u8, (x + y) as u8]));
    let file = png_of(
        [64, 500],
        png::ColorType::Rgb,
        png::BitDepth::Eight,
        image.as_raw(),
        Some(&icc),
    );
    let whole = decoded(&file);
    for (row, samples) in image.as_raw().chunks(64 * 3).enumerate().step_by(61) {
        let alone = decoded(&rgb8(samples, Some(&icc)));
        assert_eq!(alone, whole[row * 64 * 3..][..64 * 3], "row {row}");
    }
}
