//! Metrics against scikit-image's.
//!
//! Fixture: `tests/reference/parts/metrics.py`. Both sides compute in f64, where variances of levels
//! up to 255 keep 11 digits; 1e-9 leaves room for another order of summation.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use image::RgbImage;
use kontext_bench::metrics::{psnr, ssim};
use kontext_core::{Tensor, Weights};

const BOUND: f64 = 1e-9;

fn fixture() -> Weights {
    Weights::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/reference/metrics.safetensors")).unwrap()
}

fn picture_of(tensor: &Tensor) -> RgbImage {
    let [height, width, _] = <[i64; 3]>::try_from(tensor.size()).unwrap();
    let mut bytes = vec![0_u8; tensor.numel()];
    let count = bytes.len();
    tensor.copy_data(&mut bytes, count);
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

/// Compares a metric with the fixture's number of that name in every case.
fn compare(metric: &str, ours: impl Fn(&RgbImage, &RgbImage) -> f64) {
    let fixture = fixture();
    let names = fixture.names();
    let cases: Vec<&str> = names.iter().filter_map(|n| n.strip_suffix(".a")).collect();
    assert!(cases.len() >= 8);
    for case in cases {
        let read = |name: &str| fixture.raw(&format!("{case}.{name}")).unwrap();
        let (a, b) = (picture_of(&read("a")), picture_of(&read("b")));
        let (ours, expected) = (ours(&a, &b), read(metric).double_value(&[]));
        assert!((ours - expected).abs() < BOUND, "{case}: {metric} is {ours}, expected {expected}");
    }
}

#[test]
fn psnr_equals_that_of_scikit_image() {
    compare("psnr", |a, b| psnr(a, b).unwrap());
}

#[test]
fn ssim_equals_that_of_scikit_image() {
    compare("ssim", |a, b| ssim(a, b).unwrap());
}

#[test]
fn ssim_does_not_depend_on_the_order_of_the_pictures() {
    let fixture = fixture();
    let (a, b) = (fixture.raw("noisy.a").unwrap(), fixture.raw("noisy.b").unwrap());
    let (a, b) = (picture_of(&a), picture_of(&b));
    assert_eq!(ssim(&a, &b).unwrap(), ssim(&b, &a).unwrap());
}
