//! Models that resemble FLUX.1 and do not run here, by their tensors.

use std::path::Path;

use kontext_core::{CheckpointError, Error, ModelPart, Result};
use kontext_dit::DitConfig;
use kontext_formats::prefix_before;

/// A part of another model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OtherModel {
    pub(super) part: ModelPart,
    /// The model, with its article if it has one.
    pub(super) name: &'static str,
}

/// Beginnings of tensor names that only the transformer of another model has. Several are the names of BFL,
/// of diffusers, or of both.
const TRANSFORMERS: [(&str, &str); 18] = [
    ("distilled_guidance_layer.", "Chroma"),
    ("double_stream_modulation_img.", "FLUX.2"),
    ("controlnet_blocks.", "a ControlNet"),
    ("controlnet_x_embedder.", "a ControlNet"),
    ("input_hint_block.", "a ControlNet"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("pos_embed.proj.", "Stable Diffusion 3 or PixArt"),
    ("adaln_single.", "PixArt or LTX-Video"),
    ("txt_norm.", "Qwen-Image"),
    ("txt_in.individual_token_refiner.", "HunyuanVideo"),
    ("context_embedder.token_refiner.", "HunyuanVideo"),
    ("cap_embedder.", "Lumina or Z-Image"),
    ("double_stream_blocks.", "HiDream"),
    ("joint_transformer_blocks.", "AuraFlow"),
    ("patch_embedding.", "Wan"),
    ("input_blocks.", "Stable Diffusion 1, 2 or XL"),
    ("time_embedding.linear_1.", "Stable Diffusion 1, 2 or XL"),
    ("t_embedder.mlp.", "another diffusion transformer"),
];
/// Prefixes of a transformer in single files.
const PREFIXES: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", "transformer."];
/// A bias of each block, in transformers' names and in GGUF's; T5 has only that of the first.
const UMT5: [&str; 2] = [
    "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
    "enc.blk.1.attn_rel_b.weight",
];

/// Recognises a part of another model.
pub(super) fn other_model(names: &[String]) -> Option<OtherModel> {
    // Factors of adapters have other endings, those of a LoRA may follow its own (`lora_A.weight`).
    let of_a_model =
        |name: &&String| [".weight", ".bias"].iter().any(|end| name.ends_with(end)) && !name.contains("lora");
    let begins = |start: &str| {
        names.iter().filter(of_a_model).any(|name| {
            let bare = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
            bare.unwrap_or(name).starts_with(start)
        })
    };
    if let Some((_, name)) = TRANSFORMERS.iter().find(|(start, _)| begins(start)) {
        let part = ModelPart::Transformer;
        return Some(OtherModel { part, name });
    }
    let umt5 = UMT5.iter().any(|sign| prefix_before(names, sign).is_some());
    umt5.then_some(OtherModel {
        part: ModelPart::T5,
        name: "UMT5",
    })
}

/// Refuses a part of another model.
pub(super) fn check_model(path: &Path, names: &[String]) -> Result<()> {
    match other_model(names) {
        None => Ok(()),
        Some(other) if other.part == ModelPart::Transformer => Err(refused(path, other.name)),
        Some(other) => Err(Error::checkpoint(path)(CheckpointError::Unsupported {
            found: format!("the text encoder {}", other.name),
            remedy: "take T5 v1.1 XXL, the one of FLUX.1".to_owned(),
        })),
    }
}

/// Refuses a transformer with further input channels than the latents: FLUX.1's tools, which take a masked
/// image or a control image in them.
pub(super) fn check_channels(path: &Path, config: &DitConfig) -> Result<()> {
    let DitConfig {
        in_channels,
        out_channels,
        ..
    } = *config;
    if in_channels == out_channels {
        return Ok(());
    }
    let model = match (in_channels, out_channels) {
        (384, 64) => "FLUX.1-Fill",
        (128, 64) => "FLUX.1-Depth or FLUX.1-Canny",
        _ => "another model",
    };
    Err(refused(
        path,
        &format!("{model} ({in_channels} channels in, {out_channels} out, expected as many in as out)"),
    ))
}

fn refused(path: &Path, model: &str) -> Error {
    Error::checkpoint(path)(CheckpointError::Unsupported {
        found: format!("the transformer of {model}"),
        remedy: "take that of FLUX.1 Kontext, FLUX.1-dev or FLUX.1-schnell".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(names: &[&str]) -> Option<&'static str> {
        other_model(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).map(|other| other.name)
    }

    #[test]
    fn other_models_are_told_by_their_tensors_and_adapters_are_none() {
        assert_eq!(
            name_of(&["img_in.weight", "double_stream_modulation_img.lin.weight"]),
            Some("FLUX.2")
        );
        assert_eq!(
            name_of(&["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"]),
            Some("Stable Diffusion 3")
        );
        assert_eq!(
            name_of(&["vision_model.embeddings.patch_embedding.weight", "img_in.weight"]),
            None
        );
        for name in [
            "0.lora_A.weight",
            "0.lokr_w1",
            "0.hada_w1_a",
            "0.dora_scale",
            "0.alpha",
            "0.diff_b",
        ] {
            assert_eq!(
                name_of(&[&format!("diffusion_model.cap_embedder.{name}")]),
                None,
                "{name}"
            );
        }
        for umt5 in UMT5 {
            assert_eq!(name_of(&[umt5]), Some("UMT5"));
            assert_eq!(name_of(&[&umt5.replace('1', "0")]), None);
        }
    }
}
