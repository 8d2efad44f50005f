//! The trained part of a recipe's model.

use kontext_core::pattern::matches;
use kontext_core::range::within;
use kontext_core::{Error, Result};
use kontext_dit::LinearPart;
use serde::{Deserialize, Serialize};

/// The trained part of the model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Method {
    /// Every tensor of the transformer.
    #[default]
    Full,
    /// Low-rank adapters on its linear layers.
    Lora(LoraMethod),
}

/// Layers, rank and scale of the adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraMethod {
    /// Rank of the adapters, from 1 to 65536. Default 16.
    pub rank: i64,
    /// Numerator of the LoRA scale `alpha / rank`, from 0.001 to 1000000. Default: the rank.
    pub alpha: Option<f64>,
    /// If set, trains the row norms of the adapted weights as well (DoRA, arXiv 2402.09353). Every adapted
    /// weight's norms are then recomputed for each batch. Default: not set.
    pub dora: bool,
    /// Patterns of the adapted linear layers, from 1 to 1000, by the layers' names in the transformer
    /// (BFL's), with `*` as a wildcard. Default: attention and MLP of all blocks.
    pub targets: Vec<String>,
    /// Scale that the trained file asks for ([`kontext_lora::LoraDefaults`]), from 0.001 to 100. Training and
    /// validation use 1. Default: none, which counts as 1. Above 1 it amplifies what a few-step student
    /// learned from its critic.
    pub default_scale: Option<f64>,
}

impl Default for LoraMethod {
    fn default() -> Self {
        let targets = [
            "double_blocks.*.*_attn.qkv",
            "double_blocks.*.*_attn.proj",
            "double_blocks.*.*_mlp.*",
            "single_blocks.*.linear1",
            "single_blocks.*.linear2",
        ];
        Self {
            rank: 16,
            alpha: None,
            dora: false,
            targets: targets.map(str::to_owned).to_vec(),
            default_scale: None,
        }
    }
}

impl Method {
    /// Checks the values.
    pub(super) fn validate(&self) -> Result<()> {
        let Self::Lora(lora) = self else { return Ok(()) };
        within("method.rank", lora.rank, 1..=65_536)?;
        if let Some(alpha) = lora.alpha {
            within("method.alpha", alpha, 0.001..=1e6)?;
        }
        if let Some(scale) = lora.default_scale {
            within("method.default_scale", scale, 0.001..=100.0)?;
        }
        within("number of method.targets", lora.targets.len(), 1..=1000).map(drop)
    }

    /// Returns the scale that the trained file asks for.
    pub(super) fn default_scale(&self) -> Option<f64> {
        match self {
            Self::Full => None,
            Self::Lora(lora) => lora.default_scale,
        }
    }
}

impl LoraMethod {
    /// Returns the layers that match one of the patterns.
    pub(super) fn layers(&self, all: &[LinearPart]) -> Result<Vec<LinearPart>> {
        let targets = &self.targets;
        for pattern in targets {
            if !all.iter().any(|part| matches(pattern, &part.layer) && !part.swapped) {
                let expected = "patterns of linear layers that adapters change, as `double_blocks.*.img_attn.qkv`";
                return Err(Error::invalid(
                    "method.targets",
                    expected,
                    format!("`{pattern}`, which names none"),
                ));
            }
        }
        let named = |part: &&LinearPart| targets.iter().any(|pattern| matches(pattern, &part.layer)) && !part.swapped;
        let chosen: Vec<LinearPart> = all.iter().filter(named).cloned().collect();
        if chosen.is_empty() {
            return Err(Error::invalid("method.targets", "at least one pattern", "none"));
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use kontext_dit::linear_parts;

    use super::*;

    #[test]
    fn patterns_name_layers() {
        let parts = linear_parts(&kontext_dit::DitConfig::schnell()).unwrap();
        let chosen = |pattern: &str| {
            let lora = LoraMethod {
                targets: vec![pattern.to_owned()],
                ..LoraMethod::default()
            };
            lora.layers(&parts)
        };
        let error = chosen("blocks.qkv").unwrap_err();
        assert!(error.to_string().contains("`blocks.qkv`"), "{error}");
        // Its rows are exchanged in diffusers' layout.
        let error = chosen("final_layer.adaLN_modulation.1").unwrap_err();
        assert!(error.to_string().contains("which names none"), "{error}");
        assert_eq!(chosen("double_blocks.*.img_attn.qkv").unwrap().len(), 3 * 19);
    }
}
