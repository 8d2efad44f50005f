//! Images that are cut, damaged or hostile.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{ImageFormat, Rgb, RgbImage};
use kontext_core::images::{self, OpenOptions};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures").join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn reason(file: &[u8]) -> String {
    images::from_bytes(file).unwrap_err().to_string()
}

/// JPEGs of every kind of scan.
const JPEGS: [&str; 9] = [
    "grey.jpg",
    "cmyk.jpg",
    "ycck.jpg",
    "progressive.jpg",
    "turned6.jpg",
    "odd.jpg",
    "odd_restart.jpg",
    "odd_progressive.jpg",
    "odd_grey_progressive.jpg",
];
const END_MARK: [u8; 2] = [0xff, 0xd9];

/// Returns start and end of the data of each scan.
fn scans(file: &[u8]) -> Vec<[usize; 2]> {
    let starts = file.windows(2).enumerate().filter(|(_, mark)| *mark == [0xff, 0xda]);
    let data = starts.map(|(place, _)| {
        let start = place + 2 + usize::from(u16::from_be_bytes([file[place + 2], file[place + 3]]));
        let ends = |mark: &[u8]| mark[0] == 0xff && mark[1] != 0 && !(0xd0..=0xd7).contains(&mark[1]);
        [start, start + file[start..].windows(2).position(ends).unwrap()]
    });
    data.collect()
}

#[test]
fn jpegs_with_odd_sizes_restarts_and_many_scans_look_as_in_pillow() {
    for name in JPEGS.into_iter().filter(|name| name.starts_with("odd")) {
        let (stem, _) = name.rsplit_once('.').unwrap();
        let ours = images::open(fixture(name)).unwrap();
        let pillow = images::open(fixture(&format!("{stem}.rgb.png"))).unwrap();
        let pairs = ours.as_raw().iter().zip(pillow.as_raw());
        let distance = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(distance <= 6, "{name}: {distance} levels");
    }
}

#[test]
fn a_jpeg_whose_data_ends_early_is_refused_in_spite_of_an_end_mark() {
    for name in JPEGS {
        let whole = read(name);
        assert!(images::from_bytes(&whole).is_ok(), "{name}");
        for [start, end] in scans(&whole) {
            // No data, and half of it.
            for cut in [start, usize::midpoint(start, end)] {
                let mut cut = whole[..cut].to_vec();
                // Not in half of a stuffed byte or of a marker.
                while cut.last() == Some(&0xff) {
                    cut.pop();
                }
                let error = reason(&[&cut[..], &END_MARK].concat());
                assert!(
                    error.ends_with("it ends early; the file is damaged, fetch or save it again"),
                    "{name}: {error}"
                );
            }
        }
    }
}

#[test]
fn a_jpeg_cut_before_another_jpeg_ends_early_and_one_before_it_does_not() {
    let other = read("grey.jpg");
    for name in JPEGS {
        let whole = read(name);
        let [start, end] = scans(&whole)[0];
        let error = reason(&[&whole[..usize::midpoint(start, end)], &other].concat());
        assert!(error.contains("it ends early"), "{name}: {error}");
        // A second image, as cameras store it, or anything else after the end does not matter.
        let image = images::from_bytes(&whole).unwrap();
        for rest in [&other[..], b"text after the end", &[0; 100]] {
            assert_eq!(
                images::from_bytes(&[&whole[..], rest].concat()).unwrap(),
                image,
                "{name}"
            );
        }
        let cut = &whole[..whole.len() - 2];
        assert!(reason(cut).contains("it ends early"), "{name}");
    }
}

#[test]
fn a_small_jpeg_that_claims_a_large_size_is_refused() {
    for name in JPEGS {
        let mut file = read(name);
        let header = file
            .windows(2)
            .position(|mark| mark == [0xff, 0xc0] || mark == [0xff, 0xc2])
            .unwrap();
        file[header + 5..header + 9].copy_from_slice(&[0x30, 0, 0x30, 0]);
        assert!(reason(&file).contains("it ends early"), "{name}: {}", reason(&file));
    }
}

#[test]
fn fill_bytes_before_markers_are_no_damage() {
    let whole = read("odd_restart.jpg");
    let image = images::from_bytes(&whole).unwrap();
    let mut filled = Vec::new();
    let mut restarts = 0;
    for (place, byte) in whole.iter().enumerate() {
        let next = whole.get(place + 1).copied().unwrap_or_default();
        if *byte == 0xff && (0xd0..=0xd9).contains(&next) && place > 0 {
            filled.extend([0xff; 3]);
            restarts += 1;
        }
        filled.push(*byte);
    }
    assert!(restarts > 2);
    assert_eq!(images::from_bytes(&filled).unwrap(), image);
}

#[test]
fn a_jpeg_in_arithmetic_coding_is_named() {
    let mut file = read("grey.jpg");
    let header = file.windows(2).position(|mark| mark == [0xff, 0xc0]).unwrap();
    file[header + 1] = 0xc9;
    let error = reason(&file);
    let expected = "cannot use the image: it is a JPEG in lossless, hierarchical or arithmetic coding, which is not \
                    supported; save it as PNG, or as JPEG in baseline or progressive coding";
    assert_eq!(error, expected);
}

#[test]
fn a_png_whose_pixels_are_whole_opens_without_its_end() {
    for name in ["rgba.png", "palette.png", "bits.png"] {
        let whole = read(name);
        let image = images::from_bytes(&whole).unwrap();
        // The end chunk has 12 bytes, and the checksum of the pixels before it 4.
        for missing in 1..=16 {
            let cut = &whole[..whole.len() - missing];
            assert_eq!(
                images::from_bytes(cut).unwrap(),
                image,
                "{name} without {missing} bytes"
            );
        }
        for missing in 17..30 {
            let error = reason(&whole[..whole.len() - missing]);
            assert!(
                error.ends_with("the file is damaged, fetch or save it again"),
                "{name}: {error}"
            );
        }
        // Text that is cut follows the pixels.
        let text = [&whole[..whole.len() - 12], b"\0\0\x01\0tEXtComment"].concat();
        assert_eq!(images::from_bytes(&text).unwrap(), image, "{name}");
    }
}

#[test]
fn a_png_that_ends_between_two_chunks_of_pixels_is_refused() {
    let image = RgbImage::from_fn(64, 64, |x, y| {
        Rgb([(x * y) as u8, (x ^ y) as u8, (x * 7 + y * y) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    let bytes = bytes.into_inner();
    let place = bytes.windows(4).position(|kind| kind == b"IDAT").unwrap();
    let length = u32::from_be_bytes(bytes[place - 4..place].try_into().unwrap()) as usize;
    let body = [b"IDAT", &bytes[place + 4..][..length / 2]].concat();
    let checksum = crc32fast::hash(&body).to_be_bytes();
    let half = [
        &bytes[..place - 4],
        &(length as u32 / 2).to_be_bytes(),
        &body,
        &checksum,
    ]
    .concat();
    assert!(
        reason(&half).ends_with("the file is damaged, fetch or save it again"),
        "{}",
        reason(&half)
    );
}

#[test]
fn limits_are_checked_for_files_bytes_and_readers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    RgbImage::new(40, 30).save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let size = bytes.len() as u64;
    let options = OpenOptions::new().max_pixels(1200).max_bytes(size);
    assert!(options.open(&path).is_ok() && options.decode(&bytes).is_ok());
    assert!(options.decode_from(&bytes[..]).is_ok() && options.decode_mask(&bytes).is_ok());
    let few = options.max_pixels(1199);
    let small = options.max_bytes(size - 1);
    for (options, expected) in [
        (
            few,
            "expected at most 1199 pixels, got 40x30; make it smaller".to_owned(),
        ),
        (
            small,
            format!(
                "expected a file of at most {} bytes, got a larger one; make it smaller",
                size - 1
            ),
        ),
    ] {
        let errors = [
            options.open(&path).unwrap_err(),
            options.open_mask(&path).unwrap_err(),
            options.decode(&bytes).unwrap_err(),
            options.decode_from(&bytes[..]).unwrap_err(),
            options.decode_mask(&bytes).unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().ends_with(&expected), "{error}");
        }
    }
    // A reader without an end.
    let endless = std::io::Read::chain(&bytes[..], std::io::repeat(0));
    let error = options.max_bytes(1 << 20).decode_from(endless).unwrap_err().to_string();
    assert!(error.contains("at most 1048576 bytes"), "{error}");
}

/// Names the folder of hostile files to a child of these tests.
#[cfg(target_os = "linux")]
const FOLDER: &str = "KONTEXT_TEST_FOLDER";

/// Returns the peak of the process's memory in MB.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1000
}

#[test]
#[cfg(target_os = "linux")]
fn hostile_files_take_no_more_memory_than_the_limits_allow() {
    // Zeros that a chunk of a thousandth of their size holds.
    let bomb = vec![0_u8; 200 << 20];
    let mut info = png::Info::with_size(1, 1);
    info.color_type = png::ColorType::Rgb;
    info.icc_profile = Some(bomb.into());
    let mut profile = Vec::new();
    let mut writer = png::Encoder::with_info(&mut profile, info)
        .unwrap()
        .write_header()
        .unwrap();
    writer.write_image_data(&[1, 2, 3]).unwrap();
    writer.finish().unwrap();
    assert!(profile.len() < 2 << 20);
    let mut text = Vec::new();
    let mut encoder = png::Encoder::new(&mut text, 1, 1);
    encoder.set_color(png::ColorType::Rgb);
    encoder
        .add_ztxt_chunk("Raw profile type exif".into(), "0".repeat(200 << 20))
        .unwrap();
    encoder.write_header().unwrap().write_image_data(&[1, 2, 3]).unwrap();
    let mut wide = read("odd.jpg");
    let header = wide.windows(2).position(|mark| mark == [0xff, 0xc0]).unwrap();
    wide[header + 5..header + 9].copy_from_slice(&[0x34, 0, 0x34, 0]);
    let mut large = Cursor::new(Vec::new());
    RgbImage::new(8000, 8000)
        .write_to(&mut large, ImageFormat::WebP)
        .unwrap();
    let large = large.into_inner();

    // A process of its own, whose peak is not that of the other tests, or of the encoders.
    let folder = tempfile::tempdir().unwrap();
    for (name, file) in [
        ("profile", &profile),
        ("text", &text),
        ("wide", &wide),
        ("large", &large),
    ] {
        std::fs::write(folder.path().join(name), file).unwrap();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_opens_hostile_files", "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{out}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let taken = out.lines().find_map(|line| line.strip_prefix("taken: ")).unwrap();
    assert!(taken.parse::<u64>().unwrap() < 160, "{taken} MB");
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "a child of another test"]
fn child_that_opens_hostile_files() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let path = |name: &str| Path::new(&folder).join(name);
    let before = peak();
    for name in ["profile", "text"] {
        assert_eq!(images::open(path(name)).unwrap().into_raw(), [1, 2, 3]);
    }
    assert!(images::open(path("wide")).is_err());
    let limited = OpenOptions::new().max_pixels(1_000_000);
    let error = limited.open(path("large")).unwrap_err().to_string();
    assert!(error.contains("got 8000x8000"), "{error}");
    println!("\ntaken: {}", peak() - before);
}

/// Returns a progressive JPEG in grey, whose scans after the first refine coefficients of which none is set.
fn empty_scans(side: u16, scans: usize) -> Vec<u8> {
    let [high, low] = side.to_be_bytes();
    let mut file = vec![0xff, 0xd8, 0xff, 0xc2, 0, 11, 8, high, low, high, low, 1, 1, 0x11, 0];
    file.extend([0xff, 0xdb, 0, 67, 0]);
    file.extend([1; 64]);
    // A code of one bit in each table: a level of no change, and 2^14 empty blocks and more, by 14 further bits.
    for (class, symbol) in [(0x00, 0x00), (0x10, 0xe0)] {
        file.extend([0xff, 0xc4, 0, 20, class, 1]);
        file.extend([0; 15]);
        file.push(symbol);
    }
    let blocks = usize::from(side).div_ceil(8).pow(2);
    file.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 0, 0x01]);
    file.extend(vec![0; blocks.div_ceil(8)]);
    for scan in 0..scans {
        let refines = if scan == 0 { 0x01 } else { 0x10 };
        file.extend([0xff, 0xda, 0, 8, 1, 1, 0, 1, 63, refines]);
        // Codes of 15 bits, of zeros: 2^14 blocks each.
        file.extend(vec![0; (15 * blocks.div_ceil(1 << 14)).div_ceil(8)]);
    }
    file.extend(END_MARK);
    file
}

#[test]
fn a_small_jpeg_of_very_many_empty_blocks_is_refused() {
    let slow = empty_scans(12_000, 80);
    assert!(slow.len() < 400_000);
    assert_eq!(
        reason(&slow),
        "cannot use the image: it has too many scans for its size; save it again as PNG or JPEG"
    );
    // As many scans of a small image, and few of a large one.
    assert_eq!(images::from_bytes(&empty_scans(64, 80)).unwrap().dimensions(), (64, 64));
    assert_eq!(
        images::from_bytes(&empty_scans(4000, 3)).unwrap().dimensions(),
        (4000, 4000)
    );
}

#[test]
fn mutated_files_are_images_or_errors_and_never_panics() {
    let mut state = 7_u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let options = OpenOptions::new().max_pixels(1 << 20);
    let profiled = [
        "profiles/lut8.png",
        "profiles/p3_lossless.webp",
        "profiles/adobe_blocks.jpg",
        "profiles/cmyk.jpg",
    ];
    let others = ["palette_transparent.png", "grey_alpha.png", "rgba_turned.webp"];
    let (mut opened, mut refused) = (0, 0);
    for name in profiled.iter().chain(&others).chain(&JPEGS) {
        let whole = read(name);
        // Transforms of profiles take long to make.
        for _ in 0..if name.contains('/') { 40 } else { 150 } {
            let mut file = whole.clone();
            for _ in 0..=random(4) {
                let place = random(file.len());
                file[place] = random(256) as u8;
            }
            if random(4) == 0 {
                file.truncate(random(file.len()));
            }
            match options.decode(&file) {
                Ok(image) => {
                    assert!(image.width() * image.height() <= 1 << 20);
                    opened += 1;
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        !error.contains("this is a bug") && !error.contains('\n'),
                        "{name}: {error}"
                    );
                    refused += 1;
                }
            }
        }
    }
    assert!(opened > 200 && refused > 200, "{opened} opened, {refused} refused");
}

#[test]
#[cfg(unix)]
fn a_pipe_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["turned6.jpg", "rgba.png", "rgba_turned.webp"] {
        let path = folder.path().join(name);
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        let bytes = read(name);
        let writer = std::thread::spawn({
            let path = path.clone();
            move || std::fs::write(path, bytes).unwrap()
        });
        assert_eq!(images::open(&path).unwrap(), images::open(fixture(name)).unwrap());
        writer.join().unwrap();
    }
}

#[test]
fn a_mask_with_transparent_pixels_is_refused_with_the_remedy() {
    let encode = |pixel: &dyn Fn(u32) -> [u8; 4]| {
        let image = image::RgbaImage::from_fn(8, 2, |x, _| image::Rgba(pixel(x)));
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    let alpha = |x: u32| if x < 4 { 0 } else { 255 };
    // White strokes, black strokes, and a photo with a hole.
    let white = encode(&|x| [255, 255, 255, alpha(x)]);
    let black = encode(&|x| [0, 0, 0, alpha(x)]);
    let photo = encode(&|x| [x as u8 * 20, 77, 200, 255 - alpha(x)]);
    let nearly = encode(&|x| [255, 255, 255, 255 - u8::from(x == 3)]);
    for mask in [white, black, photo, nearly] {
        assert_eq!(
            OpenOptions::new().decode_mask(&mask).unwrap_err().to_string(),
            "cannot use the image: the mask has transparent pixels, and it cannot be known what they mean; save it \
             without transparency, white where the image may change and black elsewhere"
        );
    }
    // An alpha channel without transparency is none.
    let opaque = encode(&|x| {
        [x as u8 * 30; 3]
            .into_iter()
            .chain([255])
            .collect::<Vec<u8>>()
            .try_into()
            .unwrap()
    });
    let mask = OpenOptions::new().decode_mask(&opaque).unwrap();
    assert_eq!(mask.as_raw()[..8], [0, 30, 60, 90, 120, 150, 180, 210]);
}
