//! The fixture of `tests/reference/parts/metrics.py`, and the pictures that both sides draw.
// Each test file uses its part of this; these are helper functions of tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use image::RgbImage;
use kontext_core::{Device, Kind, Tensor, Weights, array, noise};

/// Side of the pictures whose features are compared, and the seed of the networks' weights.
pub const SIDE: (u32, u32) = (72, 56);
pub const WEIGHTS_SEED: u64 = 11;

pub fn fixture() -> Weights {
    Weights::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/reference/metrics.safetensors")).unwrap()
}

pub fn scalar(name: &str) -> f64 {
    fixture().raw(name).unwrap().double_value(&[])
}

pub fn values(name: &str) -> Vec<f32> {
    array::to_vec(&fixture().raw(name).unwrap()).unwrap()
}

/// From [height, width, 3].
pub fn picture_of(tensor: &Tensor) -> RgbImage {
    let [height, width, _] = <[i64; 3]>::try_from(tensor.size()).unwrap();
    let mut bytes = vec![0_u8; tensor.numel()];
    let count = bytes.len();
    tensor.contiguous().copy_data(&mut bytes, count);
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

/// `drawn` of the generator: blocks of 8 pixels, grain, and noise of so many levels.
pub fn drawn(name: &str, (width, height): (u32, u32), levels: f64) -> RgbImage {
    let (width, height) = (i64::from(width), i64::from(height));
    let draw = |part: &str, shape: [i64; 3]| {
        let seed = u64::from(crc32fast::hash(format!("{name}.{part}").as_bytes()));
        noise::randn(&shape, seed, Kind::Float, Device::Cpu).unwrap()
    };
    let coarse = draw("coarse", [height / 8 + 1, width / 8 + 1, 3]);
    let blocks = coarse.repeat_interleave_self_int(8, 0, None).repeat_interleave_self_int(8, 1, None);
    let blocks = blocks.narrow(0, 0, height).narrow(1, 0, width);
    let picture = (blocks * 50.0 + 128.0) + draw("grain", [height, width, 3]) * 9.0;
    let picture = picture + draw("noise", [height, width, 3]) * levels;
    picture_of(&picture.round().clamp(0.0, 255.0).to_kind(Kind::Uint8))
}

/// The three pairs whose features are compared.
pub fn pairs() -> Vec<(RgbImage, RgbImage)> {
    let pair = |(n, levels): (usize, f64)| {
        let name = format!("pair{n}");
        (drawn(&name, SIDE, 0.0), drawn(&name, SIDE, levels))
    };
    [4.0, 15.0, 60.0].into_iter().enumerate().map(pair).collect()
}
