//! Tests of tiles against the whole image. They differ because a tile is zero-padded at edges inside the
//! image and is normalised by its own moments.

#![allow(clippy::unwrap_used)]

mod common;

use common::{asset, relative_error};
use kontext_core::{Device, Kind, Tensor, images, noise};
use kontext_nn::Weights;
use kontext_vae::{Autoencoder, AutoencoderKl, AutoencoderTiny, Tiling, TinyConfig, VaeConfig};

/// Returns the relative errors of the tiled latents and of the tiled decoding of the untiled latents.
fn errors(vae: &Autoencoder, pixels: &Tensor, tiling: Tiling) -> (f64, f64) {
    let latents = vae.encode_latents(pixels).unwrap();
    let tiled_latents = vae.encode_latents_tiled(pixels, tiling).unwrap();
    let decoded = vae.decode(&latents).unwrap();
    let tiled_decoded = vae.decode_tiled(&latents, tiling).unwrap();
    (
        relative_error(&tiled_latents, &latents),
        relative_error(&tiled_decoded, &decoded),
    )
}

fn small_kl() -> Autoencoder {
    let config = VaeConfig {
        block_out_channels: [16, 16, 32, 32],
        norm_num_groups: 4,
        ..VaeConfig::flux()
    };
    Autoencoder::Kl(AutoencoderKl::new(&Weights::synthetic(1), &config).unwrap())
}

fn small_tiny() -> Autoencoder {
    let config = TinyConfig {
        encoder_width: 8,
        decoder_width: 8,
        ..TinyConfig::taef1()
    };
    Autoencoder::Tiny(AutoencoderTiny::new(&Weights::synthetic(1), &config).unwrap())
}

fn normal(shape: &[i64]) -> Tensor {
    noise::randn(shape, 0, Kind::Float, Device::Cpu).unwrap()
}

#[test]
fn without_normalisation_tiles_stay_within_5_percent_in_latents_and_1_percent_in_pixels() {
    let pixels = normal(&[2, 3, 6, 6])
        .upsample_bicubic2d([392, 520], false, None, None)
        .clamp(-1.0, 1.0);
    let (latents, decoded) = errors(&small_tiny(), &pixels, Tiling { tile: 256, overlap: 64 });
    assert!(
        latents < 0.05 && decoded < 0.01,
        "latents {latents:.3}, image {decoded:.3}"
    );
}

#[test]
fn on_a_image_that_repeats_itself_tiles_of_the_large_autoencoder_stay_within_10_percent() {
    // Every tile then has nearly the moments of the whole image, so random weights test how tiles are joined.
    let pixels = normal(&[1, 3, 64, 64]).repeat([1, 1, 6, 6]).clamp(-1.0, 1.0);
    let (latents, decoded) = errors(
        &small_kl(),
        &pixels,
        Tiling {
            tile: 256,
            overlap: 128,
        },
    );
    assert!(
        latents < 0.05 && decoded < 0.1,
        "latents {latents:.3}, image {decoded:.3}"
    );
}

#[test]
fn tiles_of_a_photograph_decode_to_within_40_db_of_the_whole() {
    let Some(file) = asset("tiny-autoencoders/taef1_diffusers_layout_f16.safetensors") else {
        return;
    };
    let Some(photo) = asset("photos/skimage_astronaut.png") else {
        return;
    };
    let vae = Autoencoder::open(file, Kind::Float, Device::Cpu).unwrap();
    let pixels = images::to_tensor(&images::open(photo).unwrap(), Kind::Float, Device::Cpu).unwrap();
    let latents = vae
        .encode_latents(&pixels.narrow(2, 0, 256).narrow(3, 128, 320))
        .unwrap();
    let whole = vae.decode(&latents).unwrap();
    let tiled = vae.decode_tiled(&latents, Tiling { tile: 160, overlap: 64 }).unwrap();
    // Pixels range over 2, from -1 to 1.
    let psnr = 10.0 * (4.0 / (tiled - whole).square().mean(Kind::Double).double_value(&[])).log10();
    assert!(psnr > 40.0, "{psnr:.1} dB");
}

#[test]
fn a_image_of_one_tile_is_computed_whole() {
    let vae = small_kl();
    let pixels = normal(&[1, 3, 64, 40]).clamp(-1.0, 1.0);
    let tiling = Tiling { tile: 64, overlap: 0 };
    let latents = vae.encode_latents(&pixels).unwrap();
    assert!(vae.encode_latents_tiled(&pixels, tiling).unwrap().equal(&latents));
    assert!(
        vae.decode_tiled(&latents, tiling)
            .unwrap()
            .equal(&vae.decode(&latents).unwrap())
    );
}

#[test]
fn sizes_that_are_refused_whole_are_refused_in_tiles() {
    let (vae, tiling) = (small_kl(), Tiling { tile: 64, overlap: 0 });
    let error = vae.encode_latents_tiled(&normal(&[1, 3, 100, 64]), tiling).unwrap_err();
    assert!(
        error.to_string().contains("multiples of 8 pixels, got 100x64"),
        "{error}"
    );
    let error = vae.decode_tiled(&normal(&[1, 4, 16, 16]), tiling).unwrap_err();
    assert!(
        error.to_string().starts_with("invalid number of latent channels"),
        "{error}"
    );
    assert!(
        vae.decode_tiled(&normal(&[1, 16, 16, 16]), Tiling { tile: 64, overlap: 60 })
            .is_err()
    );
}
