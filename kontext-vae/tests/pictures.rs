//! The real tiny autoencoders on real pictures.

#![allow(clippy::unwrap_used)]

mod common;

use common::asset;
use kontext_core::{Device, Kind, Tensor, picture};
use kontext_vae::Autoencoder;

/// What diffusers' AutoencoderTiny reaches in f32, in dB: file, then PSNR on astronaut and on coffee.
const REACHED: [(&str, f64, f64); 4] = [
    ("taef1", 27.46, 26.44),
    ("taesd3", 29.75, 27.52),
    ("taesd", 25.24, 24.88),
    ("taesdxl", 25.16, 24.66),
];

/// The values above have two digits after the point, and a level may round otherwise.
const TOLERANCE: f64 = 0.05;

/// The middle of a picture, with sides that are multiples of 16, [1, 3, H, W] in [-1, 1].
fn open_cropped(name: &str) -> Option<Tensor> {
    let pixels = picture::open(asset(&format!("photos/skimage_{name}.png"))?).unwrap();
    let pixels = picture::to_tensor(&pixels, Kind::Float, Device::Cpu).unwrap();
    let middle = |t: Tensor, dim: i64| {
        let size = t.size()[dim as usize];
        t.narrow(dim, (size - size / 16 * 16) / 2, size / 16 * 16)
    };
    Some(middle(middle(pixels, 2), 3))
}

/// [-1, 1] to whole levels from 0 to 255.
fn levels(pixels: &Tensor) -> Tensor {
    (pixels.clamp(-1.0, 1.0) * 127.5 + 127.5).round()
}

/// Peak signal-to-noise ratio over all channels, in dB.
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
