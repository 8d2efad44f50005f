//! Parsing of tensor names in LoRA files: the writer's family, the layer, and the factor of its adapter.
//!
//! Source: huggingface/diffusers 0.38 `src/diffusers/loaders/lora_conversion_utils.py` (kohya, OneTrainer's
//! mixture, XLabs, BFL control, fal Kontext); kohya-ss/sd-scripts `networks/lora_flux.py` for the text
//! encoders' prefixes; KohakuBlueleaf/LyCORIS 4.1.3 `lycoris/modules/*.py`, `weight_list`.

use kontext_formats::nearest_name;
use kontext_nn::DoraNorm;

use crate::table::{Layer, LoraTarget, Naming, Table};

/// Naming family of a LoRA file, by the program that writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LoraFamily {
    /// diffusers and PEFT: `transformer.transformer_blocks.0.attn.to_q.lora_A.weight`.
    Diffusers,
    /// Early diffusers: `….to_q.lora.down.weight`, `….processor.to_q_lora.down.weight`.
    OldDiffusers,
    /// kohya's sd-scripts: `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`, with `alpha`.
    Kohya,
    /// ComfyUI and trainers for it: `diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight`.
    ComfyUi,
    /// OneTrainer: `lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight`.
    OneTrainer,
    /// XLabs: `double_blocks.0.processor.qkv_lora1.down.weight`.
    XLabs,
    /// Black Forest Labs: `double_blocks.0.img_attn.qkv.lora_A.weight`.
    Bfl,
    /// fal, and PEFT without diffusers: `base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight`.
    Fal,
    /// LyCORIS: `lycoris_transformer_blocks_0_attn_to_q.lokr_w1`.
    Lycoris,
}

impl std::fmt::Display for LoraFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Diffusers => "diffusers (PEFT)",
            Self::OldDiffusers => "early diffusers",
            Self::Kohya => "kohya",
            Self::ComfyUi => "ComfyUI",
            Self::OneTrainer => "OneTrainer",
            Self::XLabs => "XLabs",
            Self::Bfl => "Black Forest Labs",
            Self::Fal => "fal (PEFT)",
            Self::Lycoris => "LyCORIS",
        })
    }
}

/// Role of a tensor in a layer's adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Leaf {
    Down,
    Up,
    UpBias,
    Alpha,
    PeftMagnitude,
    LycorisMagnitude,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    Diff,
    DiffBias,
}

impl Leaf {
    pub(super) fn norm(self) -> DoraNorm {
        if self == Self::PeftMagnitude {
            DoraNorm::Peft
        } else {
            DoraNorm::Lycoris
        }
    }
}

/// Suffixes of names and their roles; the first match wins.
const LEAVES: &[(&str, Leaf)] = &[
    (".lora_A.weight", Leaf::Down),
    (".lora_B.weight", Leaf::Up),
    (".lora_A.default.weight", Leaf::Down),
    (".lora_B.default.weight", Leaf::Up),
    (".lora_A", Leaf::Down),
    (".lora_B", Leaf::Up),
    (".lora_down.weight", Leaf::Down),
    (".lora_up.weight", Leaf::Up),
    (".lora.down.weight", Leaf::Down),
    (".lora.up.weight", Leaf::Up),
    (".lora_linear_layer.down.weight", Leaf::Down),
    (".lora_linear_layer.up.weight", Leaf::Up),
    (".down.weight", Leaf::Down),
    (".up.weight", Leaf::Up),
    (".lora_B.bias", Leaf::UpBias),
    (".lora_B.default.bias", Leaf::UpBias),
    (".lora.alpha", Leaf::Alpha),
    (".alpha", Leaf::Alpha),
    (".lora_magnitude_vector", Leaf::PeftMagnitude),
    (".lora_magnitude_vector.weight", Leaf::PeftMagnitude),
    (".lora_magnitude_vector.default.weight", Leaf::PeftMagnitude),
    (".dora_scale", Leaf::LycorisMagnitude),
    (".lokr_w1", Leaf::LokrW1),
    (".lokr_w1_a", Leaf::LokrW1A),
    (".lokr_w1_b", Leaf::LokrW1B),
    (".lokr_w2", Leaf::LokrW2),
    (".lokr_w2_a", Leaf::LokrW2A),
    (".lokr_w2_b", Leaf::LokrW2B),
    (".hada_w1_a", Leaf::HadaW1A),
    (".hada_w1_b", Leaf::HadaW1B),
    (".hada_w2_a", Leaf::HadaW2A),
    (".hada_w2_b", Leaf::HadaW2B),
    (".diff", Leaf::Diff),
    (".diff_b", Leaf::DiffBias),
];
/// Suffixes of a norm's tensors, if the module is a norm.
const NORM_ENDS: [&str; 5] = [".scale", ".weight", ".diff", ".w_norm", ".b_norm"];

/// Prefixes of names; the rest of the name is a layer of one of these targets.
const PREFIXES: [(&str, LoraFamily, &[LoraTarget]); 16] = {
    use LoraFamily::{ComfyUi, Diffusers, Fal, Kohya, Lycoris, OldDiffusers, OneTrainer};
    use LoraTarget::{Clip, T5, Transformer};
    [
        ("base_model.model.", Fal, ANY),
        ("model.diffusion_model.", ComfyUi, &[Transformer]),
        ("diffusion_model.", ComfyUi, &[Transformer]),
        ("text_encoders.clip_l.transformer.", ComfyUi, &[Clip]),
        ("text_encoders.t5xxl.transformer.", ComfyUi, &[T5]),
        ("transformer.", Diffusers, &[Transformer]),
        ("text_encoder.", Diffusers, &[Clip]),
        ("text_encoder_2.", Diffusers, &[T5]),
        ("unet.", OldDiffusers, &[Transformer]),
        ("lora_unet_", Kohya, &[Transformer]),
        ("lora_transformer_", OneTrainer, &[Transformer]),
        ("lora_te_", Kohya, &[Clip]),
        ("lora_te1_", Kohya, &[Clip]),
        // OneTrainer numbers FLUX.1's encoders, kohya those of SD3.
        ("lora_te2_", OneTrainer, &[T5]),
        ("lora_te3_", Kohya, &[T5]),
        ("lycoris_", Lycoris, ANY),
    ]
};
const ANY: &[LoraTarget] = &[LoraTarget::Transformer, LoraTarget::Clip, LoraTarget::T5];

/// Parsed name of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) family: LoraFamily,
    pub(super) layer: Layer,
    pub(super) leaf: Leaf,
}

/// Reason why a tensor has no match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoKey {
    pub(super) reason: &'static str,
    pub(super) nearest: Option<String>,
}

/// Parses a tensor's name.
pub(super) fn read(name: &str, table: &Table) -> Result<Key, NoKey> {
    let no = |reason| NoKey { reason, nearest: None };
    let split = LEAVES
        .iter()
        .find_map(|(end, leaf)| Some((name.strip_suffix(end)?, *leaf)));
    let is_norm = NORM_ENDS
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .is_some_and(|m| m.ends_with("_norm"));
    let (module, leaf) = match split {
        _ if is_norm => return Err(no("the scale of a norm; only linear layers change here")),
        Some(split) => split,
        None => return Err(no("no factor of LoRA, LoKr, LoHa or DoRA")),
    };
    let mut rest = module;
    let (mut family, mut targets, mut prefix) = (None, ANY, String::new());
    // Twice: PEFT's `base_model.model.` may precede another prefix.
    for _ in 0..2 {
        if let Some((start, writer, allowed)) = PREFIXES.iter().find(|(start, ..)| rest.starts_with(start)) {
            (family, targets) = (family.or(Some(*writer)), allowed);
            prefix.push_str(start);
            rest = rest.get(start.len()..).unwrap_or_default();
        }
    }
    let Some(layer) = table.find(rest).filter(|layer| targets.contains(&layer.target)) else {
        let names = table.names_like(rest, targets);
        let nearest = nearest_name(rest, names.iter().map(String::as_str)).map(|n| format!("{prefix}{n}"));
        return Err(NoKey {
            reason: "no linear layer of the model",
            nearest,
        });
    };
    let old = name.contains(".lora.down") || name.contains(".lora.up") || name.contains(".lora_linear_layer.");
    let family = match (layer.naming, family) {
        (Naming::XLabs, _) => LoraFamily::XLabs,
        (Naming::OldDiffusers, _) => LoraFamily::OldDiffusers,
        (_, None | Some(LoraFamily::Diffusers)) if old => LoraFamily::OldDiffusers,
        (_, Some(family)) => family,
        (Naming::Bfl, None) => LoraFamily::Bfl,
        (Naming::Diffusers, None) => LoraFamily::Diffusers,
    };
    Ok(Key { family, layer, leaf })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str) -> (LoraFamily, String, Leaf) {
        let key = read(name, &Table::new().unwrap()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        (key.family, key.layer.module, key.leaf)
    }

    #[test]
    fn one_layer_is_read_in_the_words_of_each_family() {
        let bfl = "double_blocks.3.img_attn.proj";
        let diffusers = "transformer_blocks.3.attn.to_out.0";
        for (name, family, layer) in [
            (
                "transformer.transformer_blocks.3.attn.to_out.0.lora_A.weight",
                LoraFamily::Diffusers,
                diffusers,
            ),
            (
                "transformer_blocks.3.attn.to_out.0.lora_A.default.weight",
                LoraFamily::Diffusers,
                diffusers,
            ),
            (
                "transformer.transformer_blocks.3.attn.to_out.0.lora.down.weight",
                LoraFamily::OldDiffusers,
                diffusers,
            ),
            (
                "transformer_blocks.3.attn.processor.to_out_lora.down.weight",
                LoraFamily::OldDiffusers,
                diffusers,
            ),
            (
                "lora_unet_double_blocks_3_img_attn_proj.lora_down.weight",
                LoraFamily::Kohya,
                bfl,
            ),
            (
                "diffusion_model.double_blocks.3.img_attn.proj.lora_A.weight",
                LoraFamily::ComfyUi,
                bfl,
            ),
            (
                "lora_transformer_transformer_blocks_3_attn_to_out_0.lora_down.weight",
                LoraFamily::OneTrainer,
                diffusers,
            ),
            (
                "double_blocks.3.processor.proj_lora1.down.weight",
                LoraFamily::XLabs,
                bfl,
            ),
            (
                "diffusion_model.double_blocks.3.processor.proj_lora1.down.weight",
                LoraFamily::XLabs,
                bfl,
            ),
            ("double_blocks.3.img_attn.proj.lora_A.weight", LoraFamily::Bfl, bfl),
            (
                "base_model.model.double_blocks.3.img_attn.proj.lora_A.weight",
                LoraFamily::Fal,
                bfl,
            ),
            (
                "base_model.model.transformer.transformer_blocks.3.attn.to_out.0.lora_A.weight",
                LoraFamily::Fal,
                diffusers,
            ),
            (
                "lycoris_transformer_blocks_3_attn_to_out_0.lora_down.weight",
                LoraFamily::Lycoris,
                diffusers,
            ),
        ] {
            assert_eq!(module(name), (family, layer.to_owned(), Leaf::Down), "{name}");
        }
    }

    #[test]
    fn text_encoders_are_told_apart() {
        for (name, target) in [
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", LoraTarget::Clip),
            (
                "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
                LoraTarget::Clip,
            ),
            (
                "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight",
                LoraTarget::Clip,
            ),
            (
                "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight",
                LoraTarget::Clip,
            ),
            (
                "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight",
                LoraTarget::T5,
            ),
            (
                "lora_te2_encoder_block_0_layer_1_DenseReluDense_wi_0.dora_scale",
                LoraTarget::T5,
            ),
            (
                "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_B.weight",
                LoraTarget::T5,
            ),
        ] {
            assert_eq!(
                read(name, &Table::new().unwrap()).unwrap().layer.target,
                target,
                "{name}"
            );
        }
    }

    #[test]
    fn what_fits_nothing_is_told_with_the_nearest_name() {
        let read = |name: &str| read(name, &Table::new().unwrap()).unwrap_err();
        let error = read("lora_unet_double_blocks_3_img_attn_qvk.lora_down.weight");
        assert_eq!(error.nearest.as_deref(), Some("lora_unet_double_blocks_3_img_attn_qkv"));
        let error = read("transformer.transformer_blocks.3.attn.to_qq.lora_A.weight");
        assert_eq!(
            error.nearest.as_deref(),
            Some("transformer.transformer_blocks.3.attn.to_q")
        );
        assert!(
            read("double_blocks.0.img_attn.norm.query_norm.scale")
                .reason
                .contains("norm")
        );
        assert!(
            read("lora_unet_double_blocks_0_img_attn_norm_key_norm.diff")
                .reason
                .contains("norm")
        );
        // CLIP-G of SDXL is no encoder of FLUX.1.
        assert_eq!(
            read("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha").reason,
            "no linear layer of the model"
        );
        assert!(
            read("transformer.x_embedder.oft_R.weight")
                .reason
                .starts_with("no factor")
        );
    }
}
