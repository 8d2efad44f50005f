//! Standard errors and intervals against scipy's. Fixture: `tests/reference/parts/metrics.py`.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod fixture;

use fixture::{metrics, scalar};
use kontext_bench::statistics::{Summary, bootstrap_interval, paired_differences};

fn values(name: &str) -> Vec<f64> {
    Vec::try_from(metrics().raw(name).unwrap()).unwrap()
}

#[test]
fn the_standard_error_equals_that_of_scipy() {
    let summary = Summary::of(&values("bootstrap.values")).unwrap();
    assert!((summary.standard_error - scalar("bootstrap.error")).abs() < 1e-12);
}

/// The bounds of 20,000 draws vary by a hundredth of the interval.
#[test]
fn the_bootstrap_interval_is_that_of_scipy_but_for_the_draws() {
    let bounds = values("bootstrap.bounds");
    let (low, high) = bootstrap_interval(&values("bootstrap.values"), 0.9, 20_000, 3).unwrap();
    let bound = 0.02 * (bounds[1] - bounds[0]);
    assert!(
        (low - bounds[0]).abs() < bound && (high - bounds[1]).abs() < bound,
        "{low} {high}, expected {bounds:?}"
    );
}

#[test]
fn pairs_must_be_pairs() {
    assert_eq!(paired_differences(&[3.0, 5.0], &[1.0, 7.0]).unwrap(), [2.0, -2.0]);
    let error = paired_differences(&[3.0], &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "invalid values: expected as many of one as of the other, got 1 and 0"
    );
}
