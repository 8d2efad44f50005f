//! Images with colour profiles, compared with Pillow's ImageCms (`pictures/profiles.py`).
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::path::{Path, PathBuf};

use kontext_core::images::{self};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/pictures/profiles")
        .join(name)
}

/// Returns the largest distance to Pillow's image, in levels.
fn distance(name: &str) -> u8 {
    let (stem, _) = name.rsplit_once('.').unwrap();
    let (ours, pillow) = (
        images::open(fixture(name)).unwrap(),
        images::open(fixture(&format!("{stem}.rgb.png"))).unwrap(),
    );
    let pairs = ours.as_raw().iter().zip(pillow.as_raw());
    let d: Vec<u8> = pairs.map(|(a, b)| a.abs_diff(*b)).collect();
    let m = *d.iter().max().unwrap();
    eprintln!(
        "{name}: max {m}, mean {}",
        d.iter().map(|x| f64::from(*x)).sum::<f64>() / d.len() as f64
    );
    m
}

#[test]
fn probe() {
    for name in [
        "p3.png",
        "p3_lossless.webp",
        "p3_palette.png",
        "p3_alpha.png",
        "adobe.png",
        "adobe_blocks.jpg",
        "tables.png",
        "lut8.png",
        "lut16.png",
        "lut_v4.png",
        "grey.png",
        "grey_alpha.png",
        "grey_table.png",
        "grey_blocks.jpg",
        "grey_rgb.jpg",
        "cmyk.jpg",
        "cmyk16.jpg",
        "ycck.jpg",
    ] {
        distance(name);
    }
}
