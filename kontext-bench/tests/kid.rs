//! Kernel distances against those of numpy.
//!
//! Fixture: `tests/reference/parts/kid.py`.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use kontext_bench::metrics::{Samples, kernel_distance};
use kontext_core::{Device, Kind, array, noise};
use kontext_nn::Weights;

/// The generator's sets: vectors of a, of b, their length, scale and shift.
const SETS: [(&str, i64, i64, usize, f64, f64); 4] = [
    ("same", 40, 40, 12, 1.0, 0.0),
    ("shifted", 40, 40, 12, 1.0, 0.4),
    ("unequal", 25, 60, 7, 0.5, 1.0),
    ("long", 16, 16, 512, 2.0, 0.05),
];

fn drawn(name: &str, count: i64, length: usize, scale: f64, shift: f64) -> Vec<Vec<f32>> {
    let seed = u64::from(crc32fast::hash(name.as_bytes()));
    let values = noise::randn(&[count, length as i64], seed, Kind::Float, Device::Cpu).unwrap();
    let values = array::to_vec(&(values * scale + shift)).unwrap();
    values.chunks_exact(length).map(<[f32]>::to_vec).collect()
}

#[test]
fn distances_equal_those_of_numpy() {
    let fixture = Weights::open(kontext_fixtures::reference("kid.safetensors")).unwrap();
    let mut compared = 0;
    for (name, count_a, count_b, length, scale, shift) in SETS {
        let a = drawn(&format!("{name}.a"), count_a, length, scale, 0.0);
        let b = drawn(&format!("{name}.b"), count_b, length, scale, shift);
        for (kind, samples) in [("unbiased", Samples::Independent), ("paired", Samples::Paired)] {
            let key = format!("{name}.{kind}");
            if !fixture.contains(&key) {
                assert!(kernel_distance(&a, &b, samples, 1).is_err(), "{key}");
                continue;
            }
            let expected = fixture.raw(&key).unwrap().double_value(&[]);
            let estimate = kernel_distance(&a, &b, samples, 50).unwrap().estimate();
            // Shifts are added in f32 on both sides; all sums are in f64.
            assert!(
                (estimate.value - expected).abs() < 1e-9 * expected.abs().max(1.0),
                "{key}: {estimate:?}, {expected}"
            );
            assert!(
                estimate.low < estimate.value && estimate.value < estimate.high,
                "{key}: {estimate:?}"
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 7);
}
