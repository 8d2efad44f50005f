//! Tests of the published tiny autoencoders on photographs.

#![allow(clippy::unwrap_used)]

mod common;

use common::asset;
use kontext_core::{Device, Kind, Tensor, images};
use kontext_vae::Autoencoder;

/// PSNR in dB of diffusers' AutoencoderTiny in f32: file, then astronaut and coffee.
const REACHED: [(&str, f64, f64); 4] = [
    ("taef1", 27.46, 26.44),
    ("taesd3", 29.75, 27.52),
    ("taesd", 25.24, 24.88),
    ("taesdxl", 25.16, 24.66),
];

/// Tolerance in dB: the values above have two decimals, and a level may round differently.
const TOLERANCE: f64 = 0.05;

/// Opens the central crop of an image, sides multiples of 16, as [1, 3, H, W] in [-1, 1].
fn open_cropped(name: &str) -> Option<Tensor> {
    let pixels = images::open(asset(&format!("photos/skimage_{name}.png"))?).unwrap();
    let pixels = images::to_tensor(&pixels, Kind::Float, Device::Cpu).unwrap();
    let middle = |t: Tensor, dim: i64| {
        let size = t.size()[dim as usize];
        t.narrow(dim, (size - size / 16 * 16) / 2, size / 16 * 16)
    };
    Some(middle(middle(pixels, 2), 3))
}

/// Converts [-1, 1] to integer levels from 0 to 255.
fn levels(pixels: &Tensor) -> Tensor {
    (pixels.clamp(-1.0, 1.0) * 127.5 + 127.5).round()
}

/// Computes the peak signal-to-noise ratio over all channels, in dB.
fn psnr(a: &Tensor, b: &Tensor) -> f64 {
    let error = (levels(a) - levels(b)).square().mean(Kind::Double).double_value(&[]);
    10.0 * (255.0 * 255.0 / error).log10()
}

#[test]
fn tiny_autoencoders_reach_the_quality_that_they_reach_in_diffusers() {
    for (name, astronaut, coffee) in REACHED {
        let Some(file) = asset(&format!("tiny-autoencoders/{name}_diffusers_layout_f16.safetensors")) else {
            return;
        };
        let vae = Autoencoder::open(file, Kind::Float, Device::Cpu).unwrap();
        for (photo, expected) in [("astronaut", astronaut), ("coffee", coffee)] {
            let Some(pixels) = open_cropped(photo) else { return };
            let latents = vae.encode_latents(&pixels).unwrap();
            let reached = psnr(&vae.decode(&latents).unwrap(), &pixels);
            assert!(
                (reached - expected).abs() < TOLERANCE,
                "{name} on {photo}: {reached:.3} dB, expected {expected}"
            );
        }
    }
}
