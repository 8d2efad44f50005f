//! Writing the parts of a model in the layout of diffusers: a folder each, with weights and configuration. A
//! file appears whole or not at all.

use std::path::{Path, PathBuf};

use kontext_core::{Result, Tensor, create_folder, write_json};
use kontext_dit::DitConfig;
use kontext_formats::save;
use kontext_sampler::{Sampler, SchedulerConfig, Shift};
use kontext_text::{ClipConfig, T5Config};
use kontext_vae::VaeConfig;
use serde_json::{Value, json};

use super::renamed::renamed;

/// File name of a model's weights in diffusers.
pub(crate) const DIFFUSERS_FILE: &str = "diffusion_pytorch_model.safetensors";
/// File name of a model's weights in transformers.
pub(crate) const TRANSFORMERS_FILE: &str = "model.safetensors";

/// Writes the transformer into `folder/transformer`: takes tensors under this library's names (BFL's), and
/// writes them in the same dtypes under those of diffusers.
///
/// # Errors
/// [`kontext_core::Error::Io`] if the folder cannot be written.
pub fn transformer(folder: impl AsRef<Path>, tensors: Vec<(String, Tensor)>, config: &DitConfig) -> Result<()> {
    let tensors = renamed(tensors, kontext_dit::names::diffusers, config.width())?;
    part(
        folder.as_ref(),
        "transformer",
        DIFFUSERS_FILE,
        &tensors,
        &dit_json(config),
    )
}

/// Writes the autoencoder into `folder/vae`.
///
/// # Errors
/// [`kontext_core::Error::Io`] if the folder cannot be written.
pub fn vae(folder: impl AsRef<Path>, tensors: &[(String, Tensor)], config: &VaeConfig) -> Result<()> {
    part(folder.as_ref(), "vae", DIFFUSERS_FILE, tensors, &vae_json(config))
}

/// Writes CLIP's text model into `folder/text_encoder`. Its tokenizer belongs in `folder/tokenizer`.
///
/// # Errors
/// [`kontext_core::Error::Io`] if the folder cannot be written.
pub fn clip(folder: impl AsRef<Path>, tensors: &[(String, Tensor)], config: &ClipConfig) -> Result<()> {
    part(
        folder.as_ref(),
        "text_encoder",
        TRANSFORMERS_FILE,
        tensors,
        &clip_json(config),
    )
}

/// Writes T5's encoder into `folder/text_encoder_2`. Its tokenizer belongs in `folder/tokenizer_2`.
///
/// # Errors
/// [`kontext_core::Error::Io`] if the folder cannot be written.
pub fn t5(folder: impl AsRef<Path>, tensors: &[(String, Tensor)], config: &T5Config) -> Result<()> {
    part(
        folder.as_ref(),
        "text_encoder_2",
        TRANSFORMERS_FILE,
        tensors,
        &t5_json(config),
    )
}

/// Writes `folder/model_index.json` and `folder/scheduler/scheduler_config.json`; a [`Shift`] is taken with
/// Euler's method.
///
/// # Errors
/// [`kontext_core::Error::Io`] if the folder cannot be written.
pub fn index(folder: impl AsRef<Path>, scheduler: impl Into<SchedulerConfig>) -> Result<()> {
    let folder = folder.as_ref();
    let scheduler = scheduler.into();
    let part = make_folder(&folder.join("scheduler"))?;
    write_json(part.join("scheduler_config.json"), &scheduler_json(scheduler))?;
    write_json(folder.join("model_index.json"), &model_index(scheduler.class_name()))
}

fn part(folder: &Path, name: &str, file: &str, tensors: &[(String, Tensor)], config: &Value) -> Result<()> {
    let part = make_folder(&folder.join(name))?;
    save(part.join(file), tensors, None)?;
    write_json(part.join("config.json"), config)
}

/// Creates a folder and its parents.
pub(crate) fn make_folder(folder: &Path) -> Result<PathBuf> {
    create_folder(folder)?;
    Ok(folder.to_owned())
}

/// Returns the transformer's `config.json`.
pub(crate) fn dit_json(c: &DitConfig) -> Value {
    json!({
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": c.in_channels,
        "out_channels": c.out_channels, "num_layers": c.double_blocks, "num_single_layers": c.single_blocks,
        "attention_head_dim": c.head_dim, "num_attention_heads": c.heads, "joint_attention_dim": c.context_dim,
        "pooled_projection_dim": c.pooled_dim, "guidance_embeds": c.guidance_embed, "axes_dims_rope": c.axes_dim,
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

/// Returns T5's `config.json`.
pub(crate) fn t5_json(c: &T5Config) -> Value {
    // `dense_act_fn` and `is_gated_act` override this field, which has no name for some pairs of them.
    let named = if c.gated { "gated-gelu" } else { "relu" };
    json!({
        "architectures": ["T5EncoderModel"], "model_type": "t5", "vocab_size": c.vocab_size, "d_model": c.d_model,
        "d_kv": c.d_kv, "d_ff": c.d_ff, "num_layers": c.num_layers, "num_heads": c.num_heads,
        "feed_forward_proj": named, "dense_act_fn": c.activation, "is_gated_act": c.gated,
        "relative_attention_num_buckets": c.relative_attention_num_buckets,
        "relative_attention_max_distance": c.relative_attention_max_distance, "layer_norm_epsilon": c.layer_norm_epsilon,
    })
}

fn scheduler_json(scheduler: SchedulerConfig) -> Value {
    let class = scheduler.class_name();
    let mut json = match scheduler.shift {
        Shift::Dynamic {
            base_shift,
            max_shift,
            base_tokens,
            max_tokens,
        } => json!({
            "_class_name": class, "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": true,
            "base_shift": base_shift, "max_shift": max_shift, "base_image_seq_len": base_tokens as i64,
            "max_image_seq_len": max_tokens as i64,
        }),
        Shift::Fixed(shift) => json!({
            "_class_name": class, "num_train_timesteps": 1000, "shift": shift, "use_dynamic_shifting": false,
        }),
    };
    match scheduler.sampler {
        Sampler::Consistency => json["stochastic_sampling"] = true.into(),
        Sampler::Dpmpp2m => {
            json["prediction_type"] = "flow_prediction".into();
            json["use_flow_sigmas"] = true.into();
            json["flow_shift"] = json["shift"].clone();
        }
        _ => {}
    }
    json
}

fn model_index(scheduler: &str) -> Value {
    json!({
        "_class_name": "FluxKontextPipeline",
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

#[cfg(test)]
mod tests {
    use kontext_text::Activation;

    use super::*;

    #[test]
    fn a_t5_of_any_activation_is_read_as_it_is_written() {
        for (gated, activation) in [
            (true, Activation::GeluTanh),
            (false, Activation::Relu),
            (true, Activation::Gelu),
        ] {
            let config = T5Config {
                gated,
                activation,
                ..T5Config::xxl()
            };
            let read: T5Config = serde_json::from_value(t5_json(&config)).unwrap();
            assert_eq!(read, config);
        }
    }

    #[test]
    fn a_scheduler_of_any_sampler_is_read_as_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for sampler in Sampler::ALL {
            for shift in [Shift::dev(), Shift::Fixed(2.0)] {
                let scheduler = SchedulerConfig { shift, sampler };
                index(folder.path(), scheduler).unwrap();
                let path = folder.path().join("scheduler/scheduler_config.json");
                assert_eq!(SchedulerConfig::from_json(path).unwrap(), scheduler);
            }
        }
    }
}
