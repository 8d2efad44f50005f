//! A small model with random weights: for tests, documentation and demonstrations.
//!
//! Real weights are large and gated. This writes a checkpoint of a few megabytes with the structure
//! of the real one, so that everything but the beauty of the picture can be tried.

use std::path::Path;

use kontext_core::weights::{NameMap, Recipe, save};
use kontext_core::{Device, Error, Kind, Result, Tensor, Weights};
use kontext_dit::{Dit, DitConfig};
use kontext_sampler::Shift;
use kontext_text::{ClipConfig, ClipEncoder, T5Config, T5Encoder, TextEncoder, Tokenizer};
use kontext_vae::{Autoencoder, AutoencoderKl, VaeConfig};
use serde_json::{Value, json};

use crate::letter_tokenizers::{self, make_folder, write_json};
use crate::{Layout, Parts};

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
    /// One double and two single blocks of one head, a few megabytes in all.
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
        let t5 = T5Config { vocab_size: 128, num_layers: 2, num_heads: 1, ..T5Config::xxl() };
        Self {
            dit: DitConfig { context_dim: text, pooled_dim: text, ..dit },
            vae: VaeConfig { block_out_channels: [32, 32, 64, 64], ..VaeConfig::flux() },
            clip: ClipConfig { hidden_size: text, intermediate_size: 2 * text, ..clip },
            t5: T5Config { d_model: text, d_kv: text, d_ff: 2 * text, ..t5 },
        }
    }

    /// FLUX.1 Kontext dev: 12 B parameters in the transformer, 4.8 B in T5.
    #[must_use]
    pub fn published() -> Self {
        // The letter tokenizer's own token ends a text.
        let clip = ClipConfig { eos_token_id: letter_tokenizers::clip_vocab() - 1, ..ClipConfig::large() };
        Self { dit: DitConfig::kontext_dev(), vae: VaeConfig::flux(), clip, t5: T5Config::xxl() }
    }
}
/// Writes a checkpoint with random weights into a folder, which is made if need be.
///
/// The transformer has one double and two single blocks of one head. The same seed gives the same
/// weights in both layouts. A prompt is read letter by letter.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be written.
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
    let clip_weights = made(seed.wrapping_add(2), |w| ClipEncoder::new(w, &clip, Kind::Float).map(drop))?;
    let t5_weights = made(seed.wrapping_add(3), |w| T5Encoder::new(w, &t5, Kind::Float).map(drop))?;
    match layout {
        Layout::Diffusers => {
            let part = |name: &str, file: &str, tensors: &[(String, Tensor)], config: &Value| -> Result<()> {
                let part = make_folder(&folder.join(name))?;
                save(part.join(file), tensors, None)?;
                write_json(&part.join("config.json"), config)
            };
            let dit_weights = renamed(dit_weights, kontext_dit::names::diffusers, dit.width())?;
            part("transformer", "diffusion_pytorch_model.safetensors", &dit_weights, &dit_json(&dit))?;
            part("vae", "diffusion_pytorch_model.safetensors", &vae_weights, &vae_json(&vae))?;
            part("text_encoder", "model.safetensors", &clip_weights, &clip_json(&clip))?;
            part("text_encoder_2", "model.safetensors", &t5_weights, &t5_json(&t5))?;
            let scheduler = make_folder(&folder.join("scheduler"))?;
            write_json(&scheduler.join("scheduler_config.json"), &scheduler_json())?;
            write_json(&folder.join("model_index.json"), &json!({ "_class_name": "FluxKontextPipeline" }))?;
        }
        Layout::SingleFiles => {
            let folder = make_folder(folder)?;
            save(folder.join("flux1-kontext.safetensors"), &dit_weights, None)?;
            save(folder.join("ae.safetensors"), &renamed(vae_weights, kontext_vae::names::ldm, 0)?, None)?;
            save(folder.join("clip_l.safetensors"), &clip_weights, None)?;
            save(folder.join("t5xxl.safetensors"), &t5_weights, None)?;
        }
    }
    letter_tokenizers::write(folder)
}

/// Parts with random weights, made on the device: a model of the published size for timing, say.
/// Each part's weights are of its given kind; see [`crate::Builder::random`].
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
        shift: if sizes.dit.guidance_embed { Shift::dev() } else { Shift::schnell() },
        sizes: Parts::preferred_sizes(),
    })
}

/// Draws the tensors that a model asks for.
fn made(seed: u64, build: impl FnOnce(&Weights) -> Result<()>) -> Result<Vec<(String, Tensor)>> {
    let blank = Weights::blank();
    build(&blank)?;
    let weights = Weights::synthetic(seed);
    let draw = |(name, shape): (String, Vec<i64>)| Ok((name.clone(), weights.tensor(&name, &shape)?));
    blank.shapes().into_iter().map(draw).collect()
}

/// The same tensors as a file of another naming holds them.
fn renamed(tensors: Vec<(String, Tensor)>, map: NameMap, width: i64) -> Result<Vec<(String, Tensor)>> {
    let mut renamed = Vec::new();
    for (name, value) in tensors {
        match map(&name) {
            Recipe::Name(name) => renamed.push((name, value)),
            Recipe::SwapHalves(name) => {
                let halves = value.f_chunk(2, 0)?;
                renamed.push((name, Tensor::f_cat(&halves.iter().rev().collect::<Vec<_>>(), 0)?));
            }
            Recipe::Rows(names) => {
                // All parts but the last are as high as the model is wide.
                let rows = value.size().first().copied().unwrap_or_default();
                let height = rows.min(width);
                for (index, name) in names.iter().enumerate() {
                    let start = height * index as i64;
                    let count = if index + 1 == names.len() { rows - start } else { height };
                    renamed.push((name.clone(), value.f_narrow(0, start, count)?));
                }
            }
        }
    }
    Ok(renamed)
}

fn dit_json(c: &DitConfig) -> Value {
    json!({
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": c.in_channels,
        "num_layers": c.double_blocks, "num_single_layers": c.single_blocks, "attention_head_dim": c.head_dim,
        "num_attention_heads": c.heads, "joint_attention_dim": c.context_dim, "pooled_projection_dim": c.pooled_dim,
        "guidance_embeds": c.guidance_embed, "axes_dims_rope": c.axes_dim,
    })
}

fn vae_json(c: &VaeConfig) -> Value {
    let (down, up) = (["DownEncoderBlock2D"; 4], ["UpDecoderBlock2D"; 4]);
    json!({
        "_class_name": "AutoencoderKL", "in_channels": c.in_channels, "out_channels": c.out_channels,
        "latent_channels": c.latent_channels, "block_out_channels": c.block_out_channels,
        "layers_per_block": c.layers_per_block, "norm_num_groups": c.norm_num_groups,
        "down_block_types": down, "up_block_types": up,
        "use_quant_conv": c.use_quant_conv, "use_post_quant_conv": c.use_post_quant_conv,
        "scaling_factor": c.scaling_factor, "shift_factor": c.shift_factor,
    })
}

fn clip_json(c: &ClipConfig) -> Value {
    json!({
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "max_position_embeddings": c.max_position_embeddings,
        "hidden_act": "quick_gelu", "layer_norm_eps": c.layer_norm_eps, "eos_token_id": c.eos_token_id,
    })
}

fn t5_json(c: &T5Config) -> Value {
    json!({
        "architectures": ["T5EncoderModel"], "model_type": "t5", "vocab_size": c.vocab_size, "d_model": c.d_model,
        "d_kv": c.d_kv, "d_ff": c.d_ff, "num_layers": c.num_layers, "num_heads": c.num_heads,
        "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": c.relative_attention_num_buckets,
        "relative_attention_max_distance": c.relative_attention_max_distance, "layer_norm_epsilon": c.layer_norm_epsilon,
    })
}

fn scheduler_json() -> Value {
    json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
        "use_dynamic_shifting": true, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096,
    })
}
