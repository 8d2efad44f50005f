//! Pixel metrics against scikit-image's, scipy's and pytorch-msssim's.
//!
//! Fixture: `tests/reference/parts/metrics.py`. Both sides compute in f64, in which variances of levels up to
//! 255 keep 11 digits; 1e-9 allows for another order of summation.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod fixture;

use fixture::{SIDE, drawn, image_of, metrics, scalar};
use image::{Rgb, RgbImage};
use kontext_bench::metrics::{ChangeMap, delta_e, delta_e_map, ms_ssim, psnr, sharpness, ssim, ssim_grey};
use kontext_core::array;

const BOUND: f64 = 1e-9;

/// Compares a metric with the fixture's value of that name in every case, relative to the value if above 1.
fn compare(metric: &str, ours: impl Fn(&RgbImage, &RgbImage) -> f64) {
    let fixture = metrics();
    let names = fixture.names();
    let cases: Vec<&str> = names.iter().filter_map(|n| n.strip_suffix(".a")).collect();
    assert!(cases.len() >= 8);
    for case in cases {
        let read = |name: &str| fixture.raw(&format!("{case}.{name}")).unwrap();
        let (a, b) = (image_of(&read("a")), image_of(&read("b")));
        let (ours, expected) = (ours(&a, &b), read(metric).double_value(&[]));
        let bound = BOUND * expected.abs().max(1.0);
        assert!(
            (ours - expected).abs() < bound,
            "{case}: {metric} is {ours}, expected {expected}"
        );
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
fn ssim_of_the_luma_equals_that_of_scikit_image() {
    compare("ssim_grey", |a, b| ssim_grey(a, b).unwrap());
}

#[test]
fn ciede2000_equals_that_of_scikit_image() {
    compare("delta_e", |a, b| delta_e(a, b).unwrap());
    let read = |name: &str| metrics().raw(name).unwrap();
    let map = delta_e_map(&image_of(&read("noisy.a")), &image_of(&read("noisy.b"))).unwrap();
    let expected = array::to_vec(&read("noisy.delta_e_map")).unwrap();
    assert_eq!(expected.len(), 4 * 48);
    assert!(
        expected
            .iter()
            .zip(map)
            .all(|(expected, ours)| (f64::from(*expected) - ours).abs() < 1e-5)
    );
}

#[test]
fn sharpness_equals_the_variance_of_scipys_laplacian() {
    compare("sharpness", |a, _| sharpness(a).unwrap());
}

#[test]
fn ssim_does_not_depend_on_the_order_of_the_images() {
    let fixture = metrics();
    let (a, b) = (fixture.raw("noisy.a").unwrap(), fixture.raw("noisy.b").unwrap());
    let (a, b) = (image_of(&a), image_of(&b));
    assert_eq!(ssim(&a, &b).unwrap(), ssim(&b, &a).unwrap());
}

/// pytorch-msssim keeps its window in f32, which leaves an error of 1e-7.
#[test]
fn ms_ssim_equals_that_of_pytorch_msssim_for_even_and_odd_sides() {
    for (name, size) in [("even", (192, 176)), ("odd", (181, 163)), ("odd_at_last", (168, 210))] {
        let ours = ms_ssim(&drawn(name, size, 0.0), &drawn(name, size, 20.0)).unwrap();
        let expected = scalar(&format!("ms_ssim.{name}"));
        assert!((ours - expected).abs() < 1e-6, "{name}: {ours}, expected {expected}");
    }
    let same = drawn("even", (192, 176), 0.0);
    assert!((ms_ssim(&same, &same).unwrap() - 1.0).abs() < 1e-12);
}

#[test]
fn what_an_edit_changed_equals_the_same_by_scipy_and_scikit_image() {
    let (source, mut result) = (drawn("edit", SIDE, 0.0), drawn("edit", SIDE, 5.0));
    for (x, y) in (20..47).flat_map(|x| (12..30).map(move |y| (x, y))) {
        result.put_pixel(x, y, Rgb([200, 30, 60]));
    }
    let change = ChangeMap::between(&source, &result, 16.0).unwrap();
    let magnitude = change.magnitude();
    let ours = [
        ("share", magnitude.share),
        ("mean_difference", magnitude.mean_difference),
        ("psnr", change.preservation_psnr().unwrap()),
        ("ssim", change.untouched_ssim().unwrap()),
    ];
    for (name, ours) in ours {
        let expected = scalar(&format!("change.{name}"));
        assert!(
            (ours - expected).abs() < BOUND * expected.max(1.0),
            "{name} is {ours}, expected {expected}"
        );
    }
    // The same map, given.
    let given = ChangeMap::given(&source, &result, change.mask()).unwrap();
    assert_eq!(given.untouched_ssim(), change.untouched_ssim());
}

#[test]
fn numbers_do_not_depend_on_the_number_of_threads() {
    let (a, b) = (drawn("even", (192, 176), 0.0), drawn("even", (192, 176), 20.0));
    let all = || {
        let change = ChangeMap::between(&a, &b, 4.0).unwrap();
        let results = [
            psnr(&a, &b),
            ssim(&a, &b),
            ssim_grey(&a, &b),
            ms_ssim(&a, &b),
            delta_e(&a, &b),
            sharpness(&a),
        ];
        (
            results.map(Result::unwrap),
            change.mask().clone(),
            change.untouched_ssim(),
        )
    };
    let with = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(all)
    };
    assert_eq!(with(1), with(5));
}
