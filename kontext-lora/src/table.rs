//! Table of the linear layers that a LoRA can adapt, under all their names.

use std::collections::BTreeMap;

use kontext_core::Result;

use kontext_dit::{DitConfig, linear_parts};

/// Model of the pipeline that a layer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoraTarget {
    /// The transformer.
    Transformer,
    /// CLIP's text model.
    Clip,
    /// T5's encoder.
    T5,
}

impl std::fmt::Display for LoraTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Transformer => "transformer",
            Self::Clip => "CLIP",
            Self::T5 => "T5",
        })
    }
}

/// Naming scheme of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Naming {
    /// BFL's, for whole fused layers.
    Bfl,
    /// diffusers' (and transformers'), for parts of a fused layer.
    Diffusers,
    /// Attention processors of XLabs.
    XLabs,
    /// Attention processors of early diffusers.
    OldDiffusers,
    /// OneTrainer's, for parts of a fused layer: BFL's name of it, and a number.
    OneTrainer,
}

/// A layer in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) target: LoraTarget,
    pub(super) naming: Naming,
    /// Dotted name, in BFL's or diffusers' naming.
    pub(super) module: String,
    /// If set, only queries, keys and values of a layer that also contains the MLP.
    pub(super) attention_only: bool,
}

/// Placeholder for a block's index.
const INDEX: &str = "{}";

/// Layers by name, with a placeholder for the block's index: a LoRA may be for a model of any depth.
pub(super) struct Table(BTreeMap<String, Layer>);

/// XLabs' processors and their layers.
const XLABS: [(&str, &str); 6] = [
    ("double_blocks.{}.processor.qkv_lora1", "double_blocks.{}.img_attn.qkv"),
    ("double_blocks.{}.processor.qkv_lora2", "double_blocks.{}.txt_attn.qkv"),
    (
        "double_blocks.{}.processor.proj_lora1",
        "double_blocks.{}.img_attn.proj",
    ),
    (
        "double_blocks.{}.processor.proj_lora2",
        "double_blocks.{}.txt_attn.proj",
    ),
    ("single_blocks.{}.processor.qkv_lora", "single_blocks.{}.linear1"),
    ("single_blocks.{}.processor.proj_lora", "single_blocks.{}.linear2"),
];
/// OneTrainer's names of parts that have a number.
const ONETRAINER: [(&str, &str); 11] = [
    ("double_blocks.{}.img_attn.qkv.0", "transformer_blocks.{}.attn.to_q"),
    ("double_blocks.{}.img_attn.qkv.1", "transformer_blocks.{}.attn.to_k"),
    ("double_blocks.{}.img_attn.qkv.2", "transformer_blocks.{}.attn.to_v"),
    (
        "double_blocks.{}.txt_attn.qkv.0",
        "transformer_blocks.{}.attn.add_q_proj",
    ),
    (
        "double_blocks.{}.txt_attn.qkv.1",
        "transformer_blocks.{}.attn.add_k_proj",
    ),
    (
        "double_blocks.{}.txt_attn.qkv.2",
        "transformer_blocks.{}.attn.add_v_proj",
    ),
    ("single_blocks.{}.linear1.0", "single_transformer_blocks.{}.attn.to_q"),
    ("single_blocks.{}.linear1.1", "single_transformer_blocks.{}.attn.to_k"),
    ("single_blocks.{}.linear1.2", "single_transformer_blocks.{}.attn.to_v"),
    ("single_blocks.{}.linear1.3", "single_transformer_blocks.{}.proj_mlp"),
    ("img_in.proj", "x_embedder"),
];
/// Layers of a CLIP block.
const CLIP: [&str; 6] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
];
/// Layers of a T5 block.
const T5: [&str; 8] = [
    "layer.0.SelfAttention.q",
    "layer.0.SelfAttention.k",
    "layer.0.SelfAttention.v",
    "layer.0.SelfAttention.o",
    "layer.1.DenseReluDense.wi_0",
    "layer.1.DenseReluDense.wi_1",
    "layer.1.DenseReluDense.wi",
    "layer.1.DenseReluDense.wo",
];

impl Table {
    pub(super) fn new() -> Result<Self> {
        let mut table = Self(BTreeMap::new());
        let shallow = DitConfig {
            double_blocks: 1,
            single_blocks: 1,
            ..DitConfig::kontext_dev()
        };
        for part in linear_parts(&shallow)? {
            let (module, layer) = (open(&part.module), open(&part.layer));
            table.add(LoraTarget::Transformer, Naming::Bfl, &layer, &layer);
            table.add(LoraTarget::Transformer, Naming::Diffusers, &module, &module);
            if let Some((attention, name)) = module.split_once(".attn.") {
                // `attn.to_out.0` was `attn.processor.to_out_lora`.
                let old = format!("{attention}.attn.processor.{}_lora", name.trim_end_matches(".0"));
                table.add(LoraTarget::Transformer, Naming::OldDiffusers, &old, &module);
            }
        }
        for (name, layer) in XLABS {
            table.add(LoraTarget::Transformer, Naming::XLabs, name, layer);
        }
        for (name, part) in ONETRAINER {
            table.add(LoraTarget::Transformer, Naming::OneTrainer, name, part);
        }
        for part in CLIP {
            let module = format!("text_model.encoder.layers.{INDEX}.{part}");
            table.add(LoraTarget::Clip, Naming::Diffusers, &module, &module);
            table.add(
                LoraTarget::Clip,
                Naming::Diffusers,
                &format!("encoder.layers.{INDEX}.{part}"),
                &module,
            );
        }
        for part in T5 {
            let module = format!("encoder.block.{INDEX}.{part}");
            table.add(LoraTarget::T5, Naming::Diffusers, &module, &module);
        }
        Ok(table)
    }

    fn add(&mut self, target: LoraTarget, naming: Naming, name: &str, module: &str) {
        let attention_only = name.ends_with("processor.qkv_lora");
        self.0.entry(flat(name)).or_insert(Layer {
            target,
            naming,
            module: module.to_owned(),
            attention_only,
        });
    }

    /// Finds the layer called `name`, with dots or with underscores or dashes instead of them. Separators too
    /// many (`attn_to_v_`) do not count.
    pub(super) fn find(&self, name: &str) -> Option<Layer> {
        let name = flat(name);
        if let Some(layer) = self.0.get(&name) {
            return Some(layer.clone());
        }
        let (open, index) = without_index(&name)?;
        let layer = self.0.get(&open)?.clone();
        Some(Layer {
            module: layer.module.replacen(INDEX, &index, 1),
            ..layer
        })
    }

    /// Returns the names of the targets' layers in the block of `name`, in the same notation.
    pub(super) fn names_like(&self, name: &str, targets: &[LoraTarget]) -> Vec<String> {
        let index = without_index(&flat(name)).map_or_else(|| "0".to_owned(), |(_, index)| index);
        let entries = self.0.iter().filter(|(_, layer)| targets.contains(&layer.target));
        let dotted = name.contains('.');
        let name = |(flat, layer): (&String, &Layer)| {
            let own = matches!(layer.naming, Naming::Bfl | Naming::Diffusers);
            (own || !dotted).then(|| if dotted { &layer.module } else { flat }.replacen(INDEX, &index, 1))
        };
        entries.filter_map(name).collect()
    }
}

fn flat(name: &str) -> String {
    let words = name.split(['.', '_', '-']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_")
}

/// Replaces the block index of `transformer_blocks.0.attn.to_q` by the placeholder.
fn open(module: &str) -> String {
    if module.contains("blocks.0.") {
        module.replacen(".0.", &format!(".{INDEX}."), 1)
    } else {
        module.to_owned()
    }
}

/// Replaces the first number of an underscored name by the placeholder; returns the name and the number.
fn without_index(name: &str) -> Option<(String, String)> {
    let mut tokens: Vec<&str> = name.split('_').collect();
    let at = tokens
        .iter()
        .position(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_digit()))?;
    let index = std::mem::replace(tokens.get_mut(at)?, INDEX);
    Some((tokens.join("_"), index.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_with_dots_and_with_underscores() {
        let table = Table::new().unwrap();
        let deep = DitConfig {
            double_blocks: 2,
            single_blocks: 13,
            ..DitConfig::kontext_dev()
        };
        for part in linear_parts(&deep).unwrap() {
            for (name, naming) in [(&part.module, Naming::Diffusers), (&part.layer, Naming::Bfl)] {
                for written in [
                    name.clone(),
                    flat(name),
                    format!("{}_", flat(name)),
                    name.replace('.', "-"),
                ] {
                    let layer = table.find(&written).unwrap();
                    assert_eq!((&layer.module, layer.target), (name, LoraTarget::Transformer));
                    assert_eq!(layer.naming, naming, "{written}");
                }
            }
        }
    }

    #[test]
    fn no_two_layers_share_a_name() {
        let shallow = DitConfig {
            double_blocks: 1,
            single_blocks: 1,
            ..DitConfig::kontext_dev()
        };
        let parts = linear_parts(&shallow).unwrap();
        let layers: std::collections::BTreeSet<&str> = parts.iter().map(|p| p.layer.as_str()).collect();
        let attention = parts.iter().filter(|p| p.module.contains(".attn.")).count();
        let expected =
            layers.len() + parts.len() + attention + XLABS.len() + ONETRAINER.len() + 2 * CLIP.len() + T5.len();
        assert_eq!(Table::new().unwrap().0.len(), expected);
    }

    #[test]
    fn processors_and_text_encoders_are_found() {
        let table = Table::new().unwrap();
        let module = |name: &str| table.find(name).unwrap().module;
        assert_eq!(
            module("double_blocks.7.processor.qkv_lora2"),
            "double_blocks.7.txt_attn.qkv"
        );
        assert!(table.find("single_blocks.7.processor.qkv_lora").unwrap().attention_only);
        assert_eq!(
            module("transformer_blocks.3.attn.processor.to_out_lora"),
            "transformer_blocks.3.attn.to_out.0"
        );
        assert_eq!(
            module("text_model_encoder_layers_11_mlp_fc1"),
            "text_model.encoder.layers.11.mlp.fc1"
        );
        assert_eq!(
            module("encoder_block_3_layer_1_DenseReluDense_wi_0"),
            "encoder.block.3.layer.1.DenseReluDense.wi_0"
        );
        assert_eq!(table.find("down_blocks_0_attentions_0_proj_in"), None);
    }
}
