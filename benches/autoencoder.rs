//! FLUX.1's autoencoder in f32 and bf16: times with random weights, and the loss of quality on photos.
//!
//! The kinds take turns, and of each the least time counts, so that a busy machine slows both.
//!
//! ```text
//! cargo bench --bench autoencoder                        # encode and decode 512x512, seconds
//! cargo bench --bench autoencoder -- 1024                # another side
//! cargo bench --bench autoencoder -- VAE PHOTO PHOTO     # PSNR in both kinds, dB; VAE is a file or a folder
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A benchmark that cannot run stops.

use std::time::Instant;

use kontext::crates::kontext_core::images::{Rounding, from_tensor, to_tensor};
use kontext::{Autoencoder, Device, Kind, Tensor, VaeConfig, Weights};
use kontext_bench::metrics::psnr;
use kontext_vae::AutoencoderKl;

const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];
/// Turns of each kind; the first converts the weights.
const TURNS: usize = 4;

fn main() {
    let _no_grad = tch::no_grad_guard();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match arguments.as_slice() {
        [] => times(512),
        [side] if side.parse::<i64>().is_ok() => times(side.parse().unwrap()),
        [vae, photos @ ..] => quality(vae, photos),
    }
}

fn times(side: i64) {
    let vae = AutoencoderKl::new(&Weights::synthetic(0), &VaeConfig::flux()).unwrap();
    let image = Tensor::rand([1, 3, side, side], (Kind::Float, Device::Cpu)) * 2.0 - 1.0;
    let mut least = [[f64::INFINITY; 2]; 2];
    for _ in 0..TURNS {
        for (kind, least) in KINDS.into_iter().zip(&mut least) {
            let image = image.to_kind(kind);
            let begin = Instant::now();
            let latents = vae.encode_latents(&image).unwrap();
            least[0] = least[0].min(begin.elapsed().as_secs_f64());
            let begin = Instant::now();
            drop(vae.decode(&latents).unwrap());
            least[1] = least[1].min(begin.elapsed().as_secs_f64());
        }
    }
    for (kind, [encode, decode]) in KINDS.into_iter().zip(least) {
        println!("{kind:?} {side}x{side}: encode {encode:.3} s, decode {decode:.3} s");
    }
}

fn quality(vae: &str, photos: &[String]) {
    let vae = Autoencoder::open(vae, Kind::Float, Device::Cpu).unwrap();
    let mut sums = [0.0; 2];
    for photo in photos {
        let whole = kontext::open_image(photo).unwrap();
        let (width, height) = (whole.width() / 16 * 16, whole.height() / 16 * 16);
        let image = kontext::image::imageops::crop_imm(&whole, 0, 0, width, height).to_image();
        let mut reached = Vec::new();
        for (kind, sum) in KINDS.into_iter().zip(&mut sums) {
            let pixels = to_tensor(&image, kind, Device::Cpu).unwrap();
            let decoded = vae.decode(&vae.encode_latents(&pixels).unwrap()).unwrap();
            let back = from_tensor(&decoded, Rounding::Nearest).unwrap().remove(0);
            reached.push(psnr(&image, &back).unwrap());
            *sum += psnr(&image, &back).unwrap() / photos.len() as f64;
        }
        println!(
            "{photo}: f32 {:.3}, bf16 {:.3}, {:+.3}",
            reached[0],
            reached[1],
            reached[1] - reached[0]
        );
    }
    println!(
        "mean: f32 {:.3}, bf16 {:.3}, {:+.3} dB",
        sums[0],
        sums[1],
        sums[1] - sums[0]
    );
}
