//! Tests of opening autoencoders from files, in all namings.

#![allow(clippy::unwrap_used)]

mod common;

use std::error::Error as _;
use std::path::Path;

use common::{Fixture, relative_error};
use kontext_core::{Device, Kind, Tensor, noise};
use kontext_nn::Weights;
use kontext_vae::{Autoencoder, AutoencoderKl, AutoencoderTiny, TinyConfig, VaeConfig};

type Tensors = Vec<(String, Tensor)>;

/// Returns a small configuration that can be inferred from a file: 32 groups.
fn config() -> VaeConfig {
    VaeConfig {
        block_out_channels: [32, 32, 64, 64],
        layers_per_block: 1,
        ..VaeConfig::flux()
    }
}

/// Collects the tensors that a model requests from synthetic weights.
fn collect(build: impl Fn(&Weights)) -> Tensors {
    let weights = Weights::synthetic(5);
    build(&weights);
    let tensor = |(name, shape): (String, Vec<i64>)| (name.clone(), weights.tensor(&name, &shape).unwrap());
    weights.shapes().into_iter().map(tensor).collect()
}

fn kl_tensors(config: &VaeConfig) -> Tensors {
    collect(|weights| drop(AutoencoderKl::new(weights, config).unwrap()))
}

/// Renames today's diffusers names to black-forest-labs' by text replacement, independently of the library.
fn as_ldm(tensors: Tensors, prefix: &str) -> Tensors {
    let rename = |(name, tensor): (String, Tensor)| {
        let mut new = name.replace("down_blocks", "down").replace("resnets", "block");
        for level in 0..4 {
            new = new.replace(&format!("up_blocks.{level}"), &format!("UP.{}", 3 - level));
        }
        for (from, to) in [
            ("UP", "up"),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
            ("mid_block.block.0", "mid.block_1"),
            ("mid_block.block.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
        ] {
            new = new.replace(from, to);
        }
        // In that naming the attention layers are 1x1 convolutions.
        let is_linear = new.contains("attn_1") && tensor.dim() == 2;
        let tensor = if is_linear {
            tensor.unsqueeze(-1).unsqueeze(-1)
        } else {
            tensor
        };
        (format!("{prefix}{new}"), tensor)
    };
    tensors.into_iter().map(rename).collect()
}

fn as_old_diffusers(tensors: Tensors) -> Tensors {
    let rename = |name: String| {
        let name = name
            .replace("to_q", "query")
            .replace("to_k", "key")
            .replace("to_v", "value");
        name.replace("to_out.0", "proj_attn")
    };
    tensors
        .into_iter()
        .map(|(name, tensor)| (rename(name), tensor))
        .collect()
}

fn open_file(tensors: &[(String, Tensor)]) -> kontext_core::Result<Autoencoder> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ae.safetensors");
    kontext_formats::save(&path, tensors, None).unwrap();
    Autoencoder::open(path, Kind::Float, Device::Cpu)
}

fn image() -> Tensor {
    noise::randn(&[1, 3, 32, 40], 3, Kind::Float, Device::Cpu)
        .unwrap()
        .clamp(-1.0, 1.0)
}

/// Encodes the test image and decodes its latents; returns both.
fn round_trip(vae: &Autoencoder) -> (Tensor, Tensor) {
    let latents = vae.encode_latents(&image()).unwrap();
    let decoded = vae.decode(&latents).unwrap();
    (latents, decoded)
}

#[test]
fn the_same_weights_in_four_namings_give_the_same_latents_and_image() {
    let config = config();
    let expected = round_trip(&Autoencoder::Kl(
        AutoencoderKl::new(&Weights::synthetic(5), &config).unwrap(),
    ));
    for tensors in [
        kl_tensors(&config),
        as_old_diffusers(kl_tensors(&config)),
        as_ldm(kl_tensors(&config), ""),
        as_ldm(kl_tensors(&config), "first_stage_model."),
    ] {
        let vae = open_file(&tensors).unwrap();
        let (latents, decoded) = round_trip(&vae);
        assert!(latents.equal(&expected.0));
        assert!(decoded.equal(&expected.1));
        assert_eq!((vae.latent_channels(), vae.downscale()), (16, 8));
    }
}

#[test]
fn sizes_come_from_the_tensors_of_a_file() {
    let presets = [
        config(),
        VaeConfig {
            block_out_channels: [32, 64, 96, 128],
            ..VaeConfig::sd15()
        },
    ];
    for config in presets {
        for tensors in [kl_tensors(&config), as_ldm(kl_tensors(&config), "vae.")] {
            assert_eq!(VaeConfig::infer(&Weights::from_tensors(tensors)).unwrap(), config);
        }
    }
    let odd = TinyConfig {
        encoder_width: 8,
        decoder_width: 12,
        num_encoder_blocks: [1, 2, 3, 1],
        num_decoder_blocks: [2, 1, 3, 0],
        ..TinyConfig::taef1()
    };
    for config in [TinyConfig::taesd(), odd] {
        let tensors = collect(|weights| drop(AutoencoderTiny::new(weights, &config).unwrap()));
        assert_eq!(TinyConfig::infer(&Weights::from_tensors(tensors)).unwrap(), config);
    }
}

/// Collects zero tensors of the shapes that a model requests; they take no memory.
fn blank(build: impl Fn(&Weights)) -> Tensors {
    let weights = Weights::blank();
    build(&weights);
    let zeros = |(name, shape): (String, Vec<i64>)| {
        let zeros = weights.tensor(&name, &shape).unwrap();
        (name, zeros)
    };
    weights.shapes().into_iter().map(zeros).collect()
}

/// The autoencoders of table 1 of the FLUX.1 Kontext paper, with the tensor names of their published files.
#[test]
fn the_five_autoencoders_of_the_papers_table_open_at_full_size() {
    let kl = |config: &VaeConfig| blank(|weights| drop(AutoencoderKl::new(weights, config).unwrap()));
    let tiny = blank(|weights| drop(AutoencoderTiny::new(weights, &TinyConfig::taef1()).unwrap()));
    for (what, tensors, channels, quant) in [
        (
            "Flux-VAE, ae.safetensors",
            as_ldm(kl(&VaeConfig::flux()), ""),
            16,
            false,
        ),
        (
            "SD3-VAE, sd3_medium.safetensors",
            as_ldm(kl(&VaeConfig::sd3()), "first_stage_model."),
            16,
            false,
        ),
        ("SD3-VAE, diffusers", kl(&VaeConfig::sd3()), 16, false),
        ("SD3-TAE, diffusers", tiny, 16, false),
        (
            "SDXL-VAE, sdxl_vae.safetensors",
            as_ldm(kl(&VaeConfig::sdxl()), ""),
            4,
            true,
        ),
        (
            "SD-VAE, sd-vae-ft-mse",
            as_old_diffusers(kl(&VaeConfig::sd15())),
            4,
            true,
        ),
    ] {
        let quant_convs = tensors.iter().filter(|(name, _)| name.contains("quant_conv.")).count();
        assert_eq!(quant_convs, if quant { 4 } else { 0 }, "{what}");
        // An unread tensor would be an error.
        let vae = Autoencoder::from_weights(&Weights::from_tensors(tensors), None).unwrap();
        assert_eq!(vae.latent_channels(), channels, "{what}");
        assert_eq!(
            matches!(vae, Autoencoder::Tiny(_)),
            what.starts_with("SD3-TAE"),
            "{what}"
        );
    }
}

#[test]
fn a_folder_is_opened_with_its_configuration() {
    let fixture = Fixture::open();
    for model in ["flux", "sd", "tiny16"] {
        let folder = tempfile::tempdir().unwrap();
        let config = fixture.write_config(model, folder.path());
        let tensors = collect_from(&fixture.weights(model), &config, model.starts_with("tiny"));
        kontext_formats::save(
            folder.path().join("diffusion_pytorch_model.safetensors"),
            &tensors,
            None,
        )
        .unwrap();
        let vae = Autoencoder::open(folder.path(), Kind::Float, Device::Cpu).unwrap();
        let expected = fixture.tensor(&format!("{model}.one.decoded"));
        let decoded = vae.decode(&fixture.tensor(&format!("{model}.one.latents"))).unwrap();
        assert!(relative_error(&decoded, &expected) < 1e-5);
        assert_eq!(matches!(vae, Autoencoder::Tiny(_)), model == "tiny16");
    }
}

fn collect_from(weights: &Weights, config: &Path, tiny: bool) -> Tensors {
    if tiny {
        drop(AutoencoderTiny::new(weights, &TinyConfig::from_json(config).unwrap()).unwrap());
    } else {
        drop(AutoencoderKl::new(weights, &VaeConfig::from_json(config).unwrap()).unwrap());
    }
    let tensor = |(name, shape): (String, Vec<i64>)| (name.clone(), weights.tensor(&name, &shape).unwrap());
    weights.shapes().into_iter().map(tensor).collect()
}

#[test]
fn tensors_that_nothing_reads_are_named_but_for_those_of_training_and_of_other_parts() {
    let scalar = || Tensor::from_slice(&[0.0_f32]);
    let mut tensors = as_ldm(kl_tensors(&config()), "vae.");
    tensors.push(("vae.loss.logvar".to_owned(), scalar()));
    tensors.push(("model.diffusion_model.img_in.bias".to_owned(), scalar()));
    open_file(&tensors).unwrap();
    tensors.push(("vae.encoder.extra".to_owned(), scalar()));
    let error = open_file(&tensors).unwrap_err();
    assert!(error.source().unwrap().to_string().contains("`vae.encoder.extra`"));
}

#[test]
fn a_file_that_lacks_a_tensor_or_holds_another_model_is_refused() {
    let mut tensors = as_ldm(kl_tensors(&config()), "");
    tensors.retain(|(name, _)| name != "decoder.mid.attn_1.k.weight");
    let cause = open_file(&tensors).unwrap_err().source().unwrap().to_string();
    assert!(
        cause.starts_with("no tensor `decoder.mid.attn_1.k.weight` (nearest: "),
        "{cause}"
    );
    let other = [("img_in.weight".to_owned(), Tensor::from_slice(&[0.0_f32]))];
    let cause = open_file(&other).unwrap_err().source().unwrap().to_string();
    assert!(cause.starts_with("no autoencoder found"), "{cause}");
    let mut eight = as_ldm(
        kl_tensors(&VaeConfig {
            latent_channels: 8,
            ..config()
        }),
        "",
    );
    let cause = open_file(&eight).unwrap_err().source().unwrap().to_string();
    assert!(cause.contains("latent channels: expected 4 or 16, got 8"), "{cause}");
    eight.retain(|(name, _)| !name.starts_with("encoder.down.2"));
    assert!(open_file(&eight).is_err());
}
