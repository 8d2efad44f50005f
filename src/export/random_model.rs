//! A small model with random weights, for tests, documentation and demonstrations.
//!
//! Real weights are large and gated. This writes a checkpoint of a few megabytes with the structure of the
//! real one, so that everything but image quality can be tried.

use std::path::Path;

use kontext_core::{Device, Error, Kind, Result, Tensor};
use kontext_dit::{Dit, DitConfig};
use kontext_formats::save;
use kontext_nn::Weights;
use kontext_sampler::Shift;
use kontext_text::{ClipConfig, ClipEncoder, T5Config, T5Encoder, TextEncoder, Tokenizer};
use kontext_vae::{Autoencoder, AutoencoderKl, VaeConfig};

use super::letter_tokenizers;
use super::renamed::renamed;
use super::save_part::{self, make_folder};
use crate::{Layout, ModelDefaults, Parts};

/// Width of the small text models, which have one head.
const TEXT_WIDTH: i64 = 64;

/// The sizes of a whole model.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelSizes {
    /// The transformer.
    pub dit: DitConfig,
    /// The autoencoder.
    pub vae: VaeConfig,
    /// CLIP's text model.
    pub clip: ClipConfig,
    /// T5's encoder.
    pub t5: T5Config,
}

impl ModelSizes {
    /// Returns sizes with one double and two single blocks of one head, a few megabytes in all.
    #[must_use]
    pub fn small() -> Self {
        let (head_dim, text, vocab) = (128, TEXT_WIDTH, letter_tokenizers::clip_vocab());
        let dit = DitConfig {
            heads: 1,
            mlp_width: 4 * head_dim,
            double_blocks: 1,
            single_blocks: 2,
            ..DitConfig::kontext_dev()
        };
        let clip = ClipConfig {
            vocab_size: vocab,
            eos_token_id: vocab - 1,
            num_hidden_layers: 2,
            num_attention_heads: 1,
            ..ClipConfig::large()
        };
        let t5 = T5Config {
            vocab_size: 128,
            num_layers: 2,
            num_heads: 1,
            ..T5Config::xxl()
        };
        Self {
            dit: DitConfig {
                context_dim: text,
                pooled_dim: text,
                ..dit
            },
            vae: VaeConfig {
                block_out_channels: [32, 32, 64, 64],
                ..VaeConfig::flux()
            },
            clip: ClipConfig {
                hidden_size: text,
                intermediate_size: 2 * text,
                ..clip
            },
            t5: T5Config {
                d_model: text,
                d_kv: text,
                d_ff: 2 * text,
                ..t5
            },
        }
    }

    /// Returns the sizes of FLUX.1 Kontext dev: 12 B parameters in the transformer, 4.8 B in T5.
    #[must_use]
    pub fn published() -> Self {
        // A text ends with the letter tokenizer's own end token.
        let clip = ClipConfig {
            eos_token_id: letter_tokenizers::clip_vocab() - 1,
            ..ClipConfig::large()
        };
        Self {
            dit: DitConfig::kontext_dev(),
            vae: VaeConfig::flux(),
            clip,
            t5: T5Config::xxl(),
        }
    }
}
/// Writes a checkpoint with random weights into a folder, which is created if necessary.
///
/// The transformer has one double and two single blocks of one head. The same seed gives the same weights in
/// both layouts. Prompts are tokenized letter by letter.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written.
///
/// # Example
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path().join("model");
/// kontext::random_model(&folder, 7, kontext::Layout::Diffusers)?;
/// let pipe = kontext::Pipeline::builder().device(kontext::Device::Cpu).load(&folder)?;
/// let out = pipe.run(&kontext::Request::generate("a cat").size(64, 48).steps(2).seed(1))?;
/// assert_eq!(out.image.dimensions(), (64, 48));
/// # Ok::<(), kontext::Error>(())
/// ```
pub fn random_model(folder: impl AsRef<Path>, seed: u64, layout: Layout) -> Result<()> {
    let folder = folder.as_ref();
    let ModelSizes { dit, vae, clip, t5 } = ModelSizes::small();
    let dit_weights = made(seed, |w| Dit::new(w, &dit, |_| ()).map(drop))?;
    let vae_weights = made(seed.wrapping_add(1), |w| AutoencoderKl::new(w, &vae).map(drop))?;
    let clip_weights = made(seed.wrapping_add(2), |w| {
        ClipEncoder::new(w, &clip, Kind::Float).map(drop)
    })?;
    let t5_weights = made(seed.wrapping_add(3), |w| T5Encoder::new(w, &t5, Kind::Float).map(drop))?;
    match layout {
        Layout::Diffusers => {
            save_part::transformer(folder, dit_weights, &dit)?;
            save_part::vae(folder, &vae_weights, &vae)?;
            save_part::clip(folder, &clip_weights, &clip)?;
            save_part::t5(folder, &t5_weights, &t5)?;
            save_part::index(folder, Shift::dev())?;
        }
        Layout::SingleFiles => {
            let folder = make_folder(folder)?;
            save(folder.join("flux1-kontext.safetensors"), &dit_weights, None)?;
            save(
                folder.join("ae.safetensors"),
                &renamed(vae_weights, kontext_vae::names::ldm, 0)?,
                None,
            )?;
            save(folder.join("clip_l.safetensors"), &clip_weights, None)?;
            save(folder.join("t5xxl.safetensors"), &t5_weights, None)?;
        }
    }
    letter_tokenizers::write(folder)
}

/// Creates parts with random weights on the device, for example of the published size for timing. Each part's
/// weights have the given dtype; see [`crate::PipelineBuilder::random`].
pub(crate) fn random_parts(
    sizes: &ModelSizes,
    seed: u64,
    device: Device,
    stored: Kind,
    compute: Kind,
) -> Result<Parts> {
    let weights = |part: u64, kind: Kind| Weights::synthetic(seed.wrapping_add(part)).kind(kind).device(device);
    let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    letter_tokenizers::write(folder.path())?;
    let tokenizer = |name: &str| Tokenizer::open(folder.path().join(name));
    let clip = ClipEncoder::new(&weights(2, stored), &sizes.clip, compute)?;
    let t5 = T5Encoder::new(&weights(3, stored), &sizes.t5, compute)?;
    Ok(Parts {
        text: TextEncoder::new(clip, tokenizer("tokenizer")?, t5, tokenizer("tokenizer_2")?)?,
        dit: Dit::new(&weights(0, stored), &sizes.dit, |_| ())?,
        vae: Autoencoder::Kl(AutoencoderKl::new(&weights(1, Kind::Float), &sizes.vae)?),
        shift: if sizes.dit.guidance_embed {
            Shift::dev()
        } else {
            Shift::schnell()
        },
        defaults: ModelDefaults::default(),
    })
}

/// Draws the tensors that a model requests.
fn made(seed: u64, build: impl FnOnce(&Weights) -> Result<()>) -> Result<Vec<(String, Tensor)>> {
    let blank = Weights::blank();
    build(&blank)?;
    let weights = Weights::synthetic(seed);
    let draw = |(name, shape): (String, Vec<i64>)| Ok((name.clone(), weights.tensor(&name, &shape)?));
    blank.shapes().into_iter().map(draw).collect()
}
