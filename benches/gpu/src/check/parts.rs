//! The parts individually: text encoders at full sequence length, the autoencoder whole and tiled.

use kontext::{Autoencoder, Device, Kind, Tensor, Tiling};
use kontext_core::noise;
use kontext_text::{ClipEncoder, T5Encoder};

use super::distance::{Bounds, Trace};
use super::world::{KINDS, World};
use crate::device;
use crate::row::Outcome;
use crate::suite::Case;

/// Number of T5 tokens in FLUX.1 Kontext dev.
const TEXT: i64 = 512;
/// Bound of T5 in bf16 at that length: its attention scores are not scaled, and a softmax over 512 of them
/// amplifies roundings. Measured with bf16 arithmetic on a CPU: 7.9e-2.
const T5_BF16: f64 = 0.15;
/// Side of the image in pixels: the autoencoder's mid-block attention sees 4096 tokens.
const SIDE: i64 = 512;
/// Bound of the autoencoder in TF32: 10 bits of mantissa, a rounding of 5e-4 in each of some twenty
/// convolutions.
const TF32: f64 = 1e-2;

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for (prefix, kind) in KINDS {
        cases.push(Case::new(format!("{prefix}/text encoders"), move || texts(world, kind)));
        cases.push(Case::new(format!("{prefix}/autoencoder"), move || {
            images(world, kind, None)
        }));
        cases.push(Case::new(format!("{prefix}/autoencoder in tiles"), move || {
            images(world, kind, Some(Tiling { tile: 256, overlap: 64 }))
        }));
    }
    cases.push(Case::new("tf32/autoencoder as libtorch has it", move || {
        precision(world)
    }));
    cases
}

/// Returns ids [1, `tokens`] below `end`, which comes last.
fn ids(tokens: i64, end: i64) -> Tensor {
    let ids: Vec<i64> = (1..tokens).map(|place| (place * 37 + 5) % end).chain([end]).collect();
    Tensor::from_slice(&ids).reshape([1, tokens])
}

fn texts(world: &World, kind: Kind) -> anyhow::Result<Outcome> {
    let states = |device: Device| -> anyhow::Result<Trace> {
        let compute = device::computed_in(device, kind);
        let mut trace = Trace::empty();
        let t5 = T5Encoder::weights(world.model().join("text_encoder_2"))?
            .at_most(kind)
            .device(device);
        let t5 = T5Encoder::from_weights(&t5, &world.model().join("text_encoder_2"), compute)?;
        trace.add(
            "T5",
            &t5.forward(&ids(TEXT, t5.config().vocab_size - 1).f_to_device(device)?)?,
        )?;
        let clip = ClipEncoder::weights(world.model().join("text_encoder"))?
            .at_most(kind)
            .device(device);
        let clip = ClipEncoder::from_weights(&clip, &world.model().join("text_encoder"), compute)?;
        let output = clip.forward(&ids(77, clip.config().eos_token_id).f_to_device(device)?)?;
        trace.add("CLIP", &output.states)?;
        trace.add("CLIP, pooled", &output.pooled)?;
        Ok(trace)
    };
    let mut outcome = Outcome::default();
    let bounds = Bounds::of(kind);
    let bounds = if kind == Kind::Float {
        bounds
    } else {
        Bounds {
            encoded: T5_BF16,
            ..bounds
        }
    };
    states(world.device)?.compare(&states(Device::Cpu)?, bounds, &mut outcome)?;
    Ok(outcome)
}

/// Encodes and decodes with f32 weights, as in a pipeline, in the dtype that a run of `kind` computes in.
fn coded(world: &World, device: Device, kind: Kind, tiling: Option<Tiling>) -> anyhow::Result<Trace> {
    let vae = Autoencoder::open(world.model().join("vae"), Kind::Float, device)?;
    let kind = device::computed_in(device, kind);
    let draw = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, device);
    let image = draw(&[1, 3, SIDE, SIDE], 1)?.f_tanh()?.f_to_kind(kind)?;
    let latents = draw(&[1, vae.latent_channels(), SIDE / 8, SIDE / 8], 2)?.f_to_kind(kind)?;
    let mut trace = Trace::empty();
    match tiling {
        None => {
            trace.add("encoded image", &vae.encode_latents(&image)?)?;
            trace.add("decoded image", &vae.decode(&latents)?)?;
        }
        Some(tiling) => {
            trace.add("encoded image", &vae.encode_latents_tiled(&image, tiling)?)?;
            trace.add("decoded image", &vae.decode_tiled(&latents, tiling)?)?;
        }
    }
    Ok(trace)
}

fn images(world: &World, kind: Kind, tiling: Option<Tiling>) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let expected = coded(world, Device::Cpu, kind, tiling)?;
    coded(world, world.device, kind, tiling)?.compare(&expected, Bounds::of(kind), &mut outcome)?;
    Ok(outcome)
}

/// Measures TF32 in the autoencoder: by default libtorch lets cuDNN use it in f32 convolutions.
fn precision(world: &World) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let expected = coded(world, Device::Cpu, Kind::Float, None)?;
    device::set_tf32(true, false)?;
    let got = coded(world, world.device, Kind::Float, None);
    device::set_tf32(false, false)?;
    got?.compare(
        &expected,
        Bounds {
            stage: TF32,
            encoded: TF32,
            ..Bounds::F32
        },
        &mut outcome,
    )?;
    Ok(outcome)
}
