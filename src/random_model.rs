//! A small model with random weights: for tests, documentation and demonstrations.
//!
//! Real weights are large and gated. This writes a checkpoint of a few megabytes with the structure
//! of the real one, so that everything but the beauty of the picture can be tried.

use std::collections::BTreeMap;
use std::path::Path;

use kontext_core::weights::{NameMap, Recipe, save};
use kontext_core::{Error, Kind, Result, Tensor, Weights};
use kontext_dit::{Dit, DitConfig};
use kontext_text::{ClipConfig, ClipEncoder, T5Config, T5Encoder};
use kontext_vae::{AutoencoderKl, VaeConfig};
use serde_json::{Value, json};

use crate::Layout;

/// Width of the text models, which have one head.
const TEXT_WIDTH: i64 = 64;
/// Printable ASCII: the alphabet of the tokenizers.
const ALPHABET: std::ops::RangeInclusive<u8> = b' '..=b'~';

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
    let (dit, vae, clip, t5) = (dit_config(), vae_config(), clip_config(), t5_config());
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
            let dit_weights = renamed(dit_weights, kontext_dit::names::diffusers)?;
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
            save(folder.join("ae.safetensors"), &renamed(vae_weights, kontext_vae::names::ldm)?, None)?;
            save(folder.join("clip_l.safetensors"), &clip_weights, None)?;
            save(folder.join("t5xxl.safetensors"), &t5_weights, None)?;
        }
    }
    write_clip_tokenizer(&make_folder(&folder.join("tokenizer"))?)?;
    write_json(&make_folder(&folder.join("tokenizer_2"))?.join("tokenizer.json"), &t5_tokenizer())
}

fn dit_config() -> DitConfig {
    let (head_dim, text) = (128, TEXT_WIDTH);
    DitConfig {
        heads: 1,
        mlp_width: 4 * head_dim,
        double_blocks: 1,
        single_blocks: 2,
        context_dim: text,
        pooled_dim: text,
        ..DitConfig::kontext_dev()
    }
}

fn vae_config() -> VaeConfig {
    VaeConfig { block_out_channels: [32, 32, 64, 64], layers_per_block: 2, ..VaeConfig::flux() }
}

fn clip_config() -> ClipConfig {
    let [_, _, letters] = clip_ids();
    ClipConfig {
        vocab_size: letters + 2,
        hidden_size: TEXT_WIDTH,
        intermediate_size: 2 * TEXT_WIDTH,
        num_hidden_layers: 2,
        num_attention_heads: 1,
        eos_token_id: letters + 1,
        ..ClipConfig::large()
    }
}

fn t5_config() -> T5Config {
    T5Config {
        vocab_size: 128,
        d_model: TEXT_WIDTH,
        d_kv: TEXT_WIDTH,
        d_ff: 2 * TEXT_WIDTH,
        num_layers: 2,
        num_heads: 1,
        ..T5Config::xxl()
    }
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
fn renamed(tensors: Vec<(String, Tensor)>, map: NameMap) -> Result<Vec<(String, Tensor)>> {
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
                let height = rows.min(dit_config().width());
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

/// First letter, first letter at the end of a word, first special token.
fn clip_ids() -> [i64; 3] {
    let letters = i64::try_from(ALPHABET.count()).unwrap_or_default();
    [0, letters, 2 * letters]
}

/// A byte-pair tokenizer without merges: every letter is a token.
fn write_clip_tokenizer(folder: &Path) -> Result<()> {
    let [first, last, special] = clip_ids();
    let mut vocab = BTreeMap::new();
    for (offset, byte) in (0_i64..).zip(ALPHABET) {
        // Byte-level BPE writes the space as another letter.
        let letter = if byte == b' ' { 'Ġ' } else { char::from(byte) };
        vocab.insert(letter.to_string(), first + offset);
        vocab.insert(format!("{letter}</w>"), last + offset);
    }
    vocab.insert("<|startoftext|>".to_owned(), special);
    vocab.insert("<|endoftext|>".to_owned(), special + 1);
    write_json(&folder.join("vocab.json"), &json!(vocab))?;
    let merges = folder.join("merges.txt");
    std::fs::write(&merges, "#version: 0.2\n").map_err(Error::io(&merges))
}

/// A unigram tokenizer over letters, with T5's special tokens.
fn t5_tokenizer() -> Value {
    let special = ["<pad>", "</s>", "<unk>"];
    let mut vocab: Vec<(String, f64)> = special.iter().map(|s| ((*s).to_owned(), 0.0)).collect();
    vocab.push(("▁".to_owned(), -2.0));
    vocab.extend(ALPHABET.skip(1).map(|byte| (char::from(byte).to_string(), -3.0)));
    let added = (0..).zip(special).map(|(id, content): (i64, _)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
    });
    let end = json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "post_processor": {
            "type": "TemplateProcessing", "single": [text("A"), end], "pair": [text("A"), end, text("B"), end],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } },
        },
        "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "model": { "type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false },
    })
}

fn make_folder(folder: &Path) -> Result<std::path::PathBuf> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    Ok(folder.to_owned())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).map_err(Error::io(path))
}
