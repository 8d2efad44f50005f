//! Group norm and SiLU of the autoencoder.

use kontext::{Device, Kind};
use kontext_kernels::Kernels;

use super::inputs::{random, weights, wide};
use super::work::{Work, bytes_of, to_bf16};
use crate::row::Outcome;

const EPS: f64 = 1e-6;
const GROUPS: i64 = 32;

/// Returns channels and side of pictures in the decoder of an image of 1024x1024, and of a few pixels.
pub(super) fn pictures(on: Device) -> Vec<(i64, i64)> {
    let mut pictures = vec![(512, 8), (128, 37)];
    if on.is_cuda() {
        pictures.extend([(512, 128), (256, 512), (128, 1024)]);
    }
    pictures
}

pub(super) fn check(kernels: &Kernels, channels: i64, side: i64, outcome: &mut Outcome) -> anyhow::Result<()> {
    let on = kernels.device();
    // Channels are last in memory.
    let x = random(on, &[1, side, side, channels], 1, 2.0, 1.0)?.permute([0, 3, 1, 2]);
    let (weight, bias) = (weights(on, &[channels], 2)?, weights(on, &[channels], 3)? - 1.0);
    let normed = || kernels.group_norm_silu(&x, &weight, &bias, GROUPS, EPS, true);
    let exact = wide(&x)
        .contiguous()
        .group_norm(GROUPS, Some(wide(&weight)), Some(wide(&bias)), EPS, false)
        .silu();
    let narrow = [&weight, &bias].map(|x| x.to_kind(Kind::BFloat16));
    let work = Work {
        exact: vec![exact],
        results: &|| Ok(vec![normed()?]),
        plain: &|| {
            let [weight, bias] = &narrow;
            Ok(vec![x.group_norm(GROUPS, Some(weight), Some(bias), EPS, false).silu()])
        },
        launch: &|| Ok(normed().map(drop)?),
        bytes: 3 * bytes_of([&x]),
        round: to_bf16,
    };
    work.measure(on, outcome)
}
