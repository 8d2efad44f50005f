//! The kernels of group norm and SiLU against the same operations in f64.
#![allow(clippy::unwrap_used)]

mod common;

use common::{BF16, SMALL, assert_rounded, in_all_orders, random, weights, wide};
use kontext_kernels::Kernels;

const EPS: f64 = 1e-6;

fn compare(size: [i64; 4], groups: i64, mean: f64) {
    let [batch, channels, height, width] = size;
    // Channels last, in memory and in the noise.
    let x = random(&[batch, height, width, channels], 1, 2.0, mean).permute([0, 3, 1, 2]);
    let (weight, bias) = (weights(&[channels], 2), weights(&[channels], 3) - 1.0);
    for silu in [true, false] {
        let [result] = in_all_orders(SMALL, |kernels| {
            [kernels.group_norm_silu(&x, &weight, &bias, groups, EPS, silu).unwrap()]
        });
        assert_eq!(result.stride(), x.stride());
        let normed = wide(&x)
            .contiguous()
            .group_norm(groups, Some(wide(&weight)), Some(wide(&bias)), EPS, false);
        let expected = if silu { normed.silu() } else { normed };
        assert_rounded(&result, &expected, BF16);
    }
}

#[test]
fn fluxs_autoencoder() {
    compare([1, 512, 8, 9], 32, 1.0);
    compare([1, 256, 16, 15], 32, 1.0);
    // Several slabs of pixels.
    compare([1, 128, 37, 41], 32, 1.0);
}

/// Groups of 2, 3, 6 and 12 channels; blocks whose last threads have no pixel.
#[test]
fn the_small_models_autoencoder() {
    for channels in [16, 24, 48, 96] {
        compare([1, channels, 11, 13], 8, 0.5);
    }
}

#[test]
fn batches_are_normed_each() {
    compare([3, 64, 5, 7], 32, 0.5);
}

/// Values four deviations from zero: E[x²] - E[x]² loses less than a digit of f32.
#[test]
fn values_far_from_zero_keep_their_variance() {
    compare([1, 128, 24, 24], 32, 8.0);
}

#[test]
fn most_groups_and_most_channels() {
    compare([1, 2048, 2, 3], 128, 0.5);
    compare([1, 8, 3, 3], 1, 0.5);
}

#[test]
fn numbers_without_kernels_are_known() {
    assert!(Kernels::has_group_norm(128, 32) && Kernels::has_group_norm(24, 8));
    for (channels, groups) in [(4, 2), (12, 4), (128, 48), (2056, 8), (2048, 256), (0, 1), (8, 0)] {
        assert!(!Kernels::has_group_norm(channels, groups), "{channels}, {groups}");
    }
}
