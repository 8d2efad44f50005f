//! Scale of a LoRA: `alpha / rank` if the metadata states alpha, otherwise 1.
//!
//! Source: huggingface/diffusers 0.38 `src/diffusers/loaders/lora_base.py` (metadata); huggingface/peft 0.21
//! `src/peft/tuners/lora/layer.py`, `update_layer` (rank-stabilised scales).

use std::collections::BTreeMap;
use std::path::Path;

use kontext_core::{CheckpointError, Error, Result, read_json};
use serde_json::Value;

use crate::table::LoraTarget;

/// Metadata key under which diffusers stores PEFT's configuration.
pub(super) const METADATA: &str = "lora_adapter_metadata";
/// PEFT's configuration file, and the name of the weights file next to it.
const CONFIG: (&str, &str) = ("adapter_config.json", "adapter_model.safetensors");
/// Metadata key of one alpha for all layers.
const NETWORK_ALPHA: &str = "network_alpha";

/// Alphas of layers without an alpha tensor.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    config: BTreeMap<String, Value>,
    alpha: Option<f64>,
}

impl Scaling {
    /// Reads the alphas from a file's metadata or from PEFT's configuration next to it.
    pub(super) fn of(path: &Path, facts: &BTreeMap<String, String>) -> Result<Self> {
        let sidecar = path.with_file_name(CONFIG.0);
        let config = match facts.get(METADATA) {
            Some(text) => serde_json::from_str(text).map_err(|e| {
                let reason = format!("`{METADATA}` in its header is no JSON: {e}; write the file again");
                Error::checkpoint(path)(CheckpointError::Lora { reason })
            })?,
            None if path.file_name().is_some_and(|name| name == CONFIG.1) && sidecar.is_file() => read_json(sidecar)?,
            None => BTreeMap::new(),
        };
        let alpha = facts
            .get(NETWORK_ALPHA)
            .and_then(|text| text.parse().ok())
            .filter(|a: &f64| a.is_finite());
        Ok(Self { config, alpha })
    }

    /// Returns `true` if PEFT's configuration enables DoRA.
    pub(super) fn says_dora(&self, target: LoraTarget) -> bool {
        self.field(target, "use_dora").and_then(Value::as_bool).unwrap_or(false)
    }

    /// Returns the LoRA scale of a layer, by its name in the file and its rank.
    pub(super) fn scale(&self, target: LoraTarget, module: &str, rank: f64) -> f64 {
        let patterns = self.field(target, "alpha_pattern").and_then(Value::as_object);
        let own = patterns
            .into_iter()
            .flatten()
            .find(|(pattern, _)| fits(pattern, module));
        let general = || self.field(target, "lora_alpha").or_else(|| self.field(target, "alpha"));
        let alpha = own
            .map(|(_, alpha)| alpha)
            .or_else(general)
            .and_then(Value::as_f64)
            .or(self.alpha);
        let stabilized = self
            .field(target, "use_rslora")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        match alpha {
            Some(alpha) if stabilized => alpha / rank.sqrt(),
            Some(alpha) => alpha / rank,
            None => 1.0,
        }
    }

    /// Returns the rank in PEFT's configuration, for factors whose shapes do not show it.
    pub(super) fn rank(&self, target: LoraTarget) -> Option<f64> {
        self.field(target, "r").and_then(Value::as_f64)
    }

    fn field(&self, target: LoraTarget, name: &str) -> Option<&Value> {
        let prefix = match target {
            LoraTarget::Transformer => "transformer",
            LoraTarget::Clip => "text_encoder",
            LoraTarget::T5 => "text_encoder_2",
        };
        self.config
            .get(&format!("{prefix}.{name}"))
            .or_else(|| self.config.get(name))
    }
}

/// Returns `true` if a PEFT pattern matches a module: it is a suffix of the name, or the whole name if it
/// starts with `^`.
fn fits(pattern: &str, module: &str) -> bool {
    let plain = pattern.replace("\\.", ".");
    match plain.strip_prefix('^') {
        Some(whole) => whole == module,
        None => module
            .strip_suffix(plain.as_str())
            .is_some_and(|start| start.is_empty() || start.ends_with('.')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_says_how_strong_layers_are() {
        let read = |facts: &[(&str, &str)]| {
            let facts = facts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Scaling::of(Path::new("lora.safetensors"), &facts)
        };
        let scale = |scaling: &Scaling, module: &str| scaling.scale(LoraTarget::Transformer, module, 4.0);
        assert_eq!(scale(&read(&[]).unwrap(), "x_embedder"), 1.0);
        assert_eq!(scale(&read(&[(NETWORK_ALPHA, "2")]).unwrap(), "x_embedder"), 0.5);
        let text = r#"{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"to_q": 1, "^proj_out": 2}, "text_encoder.lora_alpha": 6}"#;
        let scaling = read(&[(METADATA, text)]).unwrap();
        assert_eq!(scale(&scaling, "x_embedder"), 2.0);
        assert_eq!(scale(&scaling, "transformer_blocks.0.attn.to_q"), 0.25);
        assert_eq!(scale(&scaling, "proj_out"), 0.5);
        assert_eq!(scale(&scaling, "single_transformer_blocks.0.proj_out"), 2.0);
        assert_eq!(scaling.scale(LoraTarget::Clip, "mlp.fc1", 4.0), 1.5);
        assert_eq!(
            scale(
                &read(&[(METADATA, r#"{"lora_alpha": 8, "use_rslora": true}"#)]).unwrap(),
                "a"
            ),
            4.0
        );
        assert!(read(&[(METADATA, "{")]).is_err());
    }
}
