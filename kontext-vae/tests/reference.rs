//! Tests of the autoencoders against tensors produced by diffusers with the same weights.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Fixture, assert_close};
use kontext_core::{Device, Kind, noise};
use kontext_vae::{AutoencoderKl, AutoencoderTiny, TinyConfig, VaeConfig};

/// Tolerance for f32 through some fifty layers: the same sums in another order.
const TOLERANCE: f64 = 1e-5;

fn kl(fixture: &Fixture, model: &str) -> AutoencoderKl {
    let folder = tempfile::tempdir().unwrap();
    let config = VaeConfig::from_json(fixture.write_config(model, folder.path())).unwrap();
    AutoencoderKl::new(&fixture.weights(model), &config).unwrap()
}

fn kl_matches(model: &str) {
    let fixture = Fixture::open();
    let vae = kl(&fixture, model);
    for size in ["one", "two"] {
        let expected = |name: &str| fixture.tensor(&format!("{model}.{size}.{name}"));
        let image = fixture.tensor(&format!("pixels.{size}"));
        let posterior = vae.encode(&image).unwrap();
        assert_close(&posterior.mean, &expected("mean"), TOLERANCE, "mean");
        assert_close(&posterior.logvar, &expected("logvar"), TOLERANCE, "logvar");
        assert_close(
            &vae.encode_latents(&image).unwrap(),
            &expected("scaled"),
            TOLERANCE,
            "scaled",
        );
        assert_close(
            &vae.decode(&expected("latents")).unwrap(),
            &expected("decoded"),
            TOLERANCE,
            "decoded",
        );
    }
}

#[test]
fn the_autoencoder_of_flux_matches_diffusers_within_1e_5_f32() {
    kl_matches("flux");
}

#[test]
fn the_autoencoder_of_stable_diffusion_with_its_quant_convs_matches_diffusers_within_1e_5_f32() {
    kl_matches("sd");
}

#[test]
fn tiny_autoencoders_match_diffusers_within_1e_5_f32() {
    let fixture = Fixture::open();
    for model in ["tiny4", "tiny16"] {
        let folder = tempfile::tempdir().unwrap();
        let config = TinyConfig::from_json(fixture.write_config(model, folder.path())).unwrap();
        let vae = AutoencoderTiny::new(&fixture.weights(model), &config).unwrap();
        for size in ["one", "two"] {
            let expected = |name: &str| fixture.tensor(&format!("{model}.{size}.{name}"));
            let image = fixture.tensor(&format!("pixels.{size}"));
            assert_close(
                &vae.encode_latents(&image).unwrap(),
                &expected("encoded"),
                TOLERANCE,
                "encoded",
            );
            assert_close(
                &vae.decode(&expected("latents")).unwrap(),
                &expected("decoded"),
                TOLERANCE,
                "decoded",
            );
        }
    }
}

#[test]
fn a_sample_is_the_mean_and_noise_of_the_posteriors_spread() {
    let fixture = Fixture::open();
    let posterior = kl(&fixture, "flux").encode(&fixture.tensor("pixels.one")).unwrap();
    let noise = noise::randn(&posterior.mean.size(), 0, Kind::Float, Device::Cpu).unwrap();
    let expected = &posterior.mean + (&posterior.logvar * 0.5).exp() * &noise;
    assert_close(&posterior.sample(&noise).unwrap(), &expected, 1e-6, "sample");
    assert!(posterior.mode().equal(&posterior.mean));
    let error = posterior.sample(&noise.narrow(3, 0, 2)).unwrap_err();
    assert!(error.to_string().starts_with("noise: expected shape"));
}

#[test]
fn bf16_goes_in_and_comes_out_and_stays_near_f32() {
    let fixture = Fixture::open();
    let vae = kl(&fixture, "flux");
    let latents = fixture.tensor("flux.one.latents").to_kind(Kind::BFloat16);
    let image = vae.decode(&latents).unwrap();
    assert_eq!(image.kind(), Kind::BFloat16);
    // 8 bits of mantissa and some fifty roundings that accumulate like a random walk: 2^-9 * sqrt(50) is
    // 1.4e-2.
    assert_close(
        &image.to_kind(Kind::Float),
        &fixture.tensor("flux.one.decoded"),
        3e-2,
        "decoded in bf16",
    );
}

#[test]
fn other_sizes_are_refused_with_what_would_do() {
    let vae = kl(&Fixture::open(), "flux");
    let zeros = |shape: &[i64]| kontext_core::Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let message = |image: &[i64]| vae.encode_latents(&zeros(image)).unwrap_err().to_string();
    let expected = "expected a height and a width that are multiples of 8 pixels, got 30x48 (height x width)";
    assert_eq!(message(&[1, 3, 30, 48]), format!("invalid image size: {expected}"));
    assert_eq!(
        message(&[3, 32, 48]),
        "image: expected shape [B, 3, H, W], got [3, 32, 48]"
    );
    assert_eq!(
        message(&[1, 4, 32, 48]),
        "image: expected shape [B, 3, H, W], got [1, 4, 32, 48]"
    );
    let error = vae.decode(&zeros(&[1, 4, 4, 6])).unwrap_err();
    let expected = "invalid number of latent channels: expected the 16 that this autoencoder has, got 4";
    assert_eq!(error.to_string(), expected);
    assert!(vae.decode(&zeros(&[1, 16, 0, 6])).is_err());
}
