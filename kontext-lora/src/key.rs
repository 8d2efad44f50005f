//! Parsing of tensor names in LoRA files: the writer's family, the layer, and the factor of its adapter.
//!
//! Source: huggingface/diffusers 0.38 `src/diffusers/loaders/lora_conversion_utils.py` (kohya, OneTrainer's
//! mixture, XLabs, BFL control, fal Kontext); kohya-ss/sd-scripts `networks/lora_flux.py` for the text
//! encoders' prefixes; Nerogar/OneTrainer `modules/util/convert/lora/convert_flux_lora.py`.

use kontext_formats::nearest_name;

use crate::family::LoraFamily;
use crate::leaf::{Cut, Leaf, cut};
use crate::prefix::{self, Prefix};
use crate::table::{Layer, Naming, Table};

/// Suffixes of a norm's tensors, if the module is a norm.
const NORM_ENDS: [&str; 5] = [".scale", ".weight", ".diff", ".w_norm", ".b_norm"];

/// Parsed name of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) family: LoraFamily,
    pub(super) layer: Layer,
    pub(super) leaf: Leaf,
    /// Name of PEFT's adapter, if the tensor's name has one.
    pub(super) adapter: Option<String>,
}

/// Reason why a tensor has no match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoKey {
    pub(super) reason: &'static str,
    pub(super) nearest: Option<String>,
}

/// Parses a tensor's name. The nearest name of a layer, which takes a while to find, is searched for if
/// `hint` is set.
pub(super) fn read(name: &str, table: &Table, hint: bool) -> Result<Key, NoKey> {
    let no = |reason| NoKey { reason, nearest: None };
    let is_norm = NORM_ENDS
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .is_some_and(|m| m.ends_with("_norm"));
    let Cut { module, leaf, adapter } = match cut(name) {
        _ if is_norm => return Err(no("the scale of a norm; only linear layers change here")),
        Some(cut) => cut,
        None => return Err(no("no factor of LoRA, LoKr, LoHa or DoRA")),
    };
    let Prefix {
        family,
        targets,
        text: prefix,
        rest,
    } = prefix::of(module);
    let Some(layer) = table.find(&rest).filter(|layer| targets.contains(&layer.target)) else {
        let nearest = hint.then(|| table.names_like(&rest, targets));
        let nearest = nearest.and_then(|names| nearest_name(&rest, names.iter().map(String::as_str)));
        return Err(NoKey {
            reason: "no linear layer of the model",
            nearest: nearest.map(|n| format!("{prefix}{n}")),
        });
    };
    let old = name.contains(".lora.down") || name.contains(".lora.up") || name.contains(".lora_linear_layer.");
    let family = match (layer.naming, family) {
        (Naming::XLabs, _) => LoraFamily::XLabs,
        (Naming::OldDiffusers, _) => LoraFamily::OldDiffusers,
        // OneTrainer puts diffusers' prefix before BFL's names, too.
        (Naming::OneTrainer, _) | (Naming::Bfl, Some(LoraFamily::Diffusers)) => LoraFamily::OneTrainer,
        (_, None | Some(LoraFamily::Diffusers)) if old => LoraFamily::OldDiffusers,
        (_, Some(family)) => family,
        (Naming::Bfl, None) => LoraFamily::Bfl,
        (Naming::Diffusers, None) => LoraFamily::Diffusers,
    };
    Ok(Key {
        family,
        layer,
        leaf,
        adapter: adapter.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::LoraTarget;

    fn module(name: &str) -> (LoraFamily, String, Leaf) {
        let key = read(name, &Table::new().unwrap(), true).unwrap_or_else(|e| panic!("{name}: {e:?}"));
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
            // An underscore too many, dashes, wrappers of torch, and an adapter's name.
            (
                "lora_unet_transformer_blocks_3_attn_to_out_0_.lora_down.weight",
                LoraFamily::Kohya,
                diffusers,
            ),
            (
                "lora_unet__double_blocks_3_img_attn_proj.lora_down.weight",
                LoraFamily::Kohya,
                bfl,
            ),
            (
                "lora_unet-transformer_blocks-3-attn-to_out-0.lora_down.weight",
                LoraFamily::Kohya,
                diffusers,
            ),
            (
                "module.base_model.model.transformer_blocks.3._orig_mod.attn.to_out.0.lora_A.default_0.weight",
                LoraFamily::Fal,
                diffusers,
            ),
            (
                "transformer.transformer_blocks.3.attn.to_out.0.lora_down.weight",
                LoraFamily::Diffusers,
                diffusers,
            ),
            (
                "unet.transformer_blocks.3.attn.to_out.0.lora_down.weight",
                LoraFamily::OldDiffusers,
                diffusers,
            ),
            (
                "lora_unet_double_blocks_3_img_attn_proj.lora_A.weight",
                LoraFamily::Kohya,
                bfl,
            ),
            // OneTrainer's BFL names.
            (
                "transformer.double_blocks.3.img_attn.qkv.1.lora_down.weight",
                LoraFamily::OneTrainer,
                "transformer_blocks.3.attn.to_k",
            ),
            (
                "transformer.single_blocks.3.linear1.3.lora_down.weight",
                LoraFamily::OneTrainer,
                "single_transformer_blocks.3.proj_mlp",
            ),
            (
                "transformer.double_blocks.3.img_attn.proj.lora_down.weight",
                LoraFamily::OneTrainer,
                bfl,
            ),
            (
                "transformer.img_in.proj.lora_down.weight",
                LoraFamily::OneTrainer,
                "x_embedder",
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
            (
                "clip_l.text_model.encoder.layers.0.mlp.fc1.lora_up.weight",
                LoraTarget::Clip,
            ),
            (
                "t5.encoder.block.0.layer.0.SelfAttention.q.lora_up.weight",
                LoraTarget::T5,
            ),
        ] {
            assert_eq!(
                read(name, &Table::new().unwrap(), true).unwrap().layer.target,
                target,
                "{name}"
            );
        }
    }

    #[test]
    fn what_fits_nothing_is_told_with_the_nearest_name() {
        let read = |name: &str| read(name, &Table::new().unwrap(), true).unwrap_err();
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
