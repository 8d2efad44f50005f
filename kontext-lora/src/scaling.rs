//! Scale of a LoRA: `alpha / rank` if the metadata states alpha, otherwise 1.
//!
//! Source: huggingface/diffusers 0.38 `src/diffusers/loaders/lora_base.py` (metadata); huggingface/peft 0.21
//! `src/peft/tuners/lora/layer.py`, `update_layer` (rank-stabilised scales).

use std::collections::BTreeMap;
use std::path::Path;

use kontext_core::{CheckpointError, Error, Result, read_json, shortened};
use serde_json::Value;

use crate::table::LoraTarget;

/// Metadata key under which diffusers stores PEFT's configuration.
pub(super) const METADATA: &str = "lora_adapter_metadata";
/// PEFT's configuration file, and the name of the weights file next to it.
const CONFIG: (&str, &str) = ("adapter_config.json", "adapter_model.safetensors");
/// Metadata key of one alpha for all layers.
const NETWORK_ALPHA: &str = "network_alpha";
/// Characters of a wrong value that a message shows.
const LONGEST: usize = 40;

/// Alphas of layers without an alpha tensor.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    config: BTreeMap<String, Value>,
    alpha: Option<f64>,
}

impl Scaling {
    /// Reads the alphas from a file's metadata or from PEFT's configuration next to it. An empty entry is
    /// none.
    pub(super) fn of(path: &Path, facts: &BTreeMap<String, String>) -> Result<Self> {
        let wrong = |reason: String| Error::checkpoint(path)(CheckpointError::Lora { reason });
        let fact = |name: &str| facts.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        let sidecar = path.with_file_name(CONFIG.0);
        let config = match fact(METADATA) {
            Some(text) => serde_json::from_str::<Option<BTreeMap<String, Value>>>(text).map_err(|e| {
                wrong(format!(
                    "`{METADATA}` in its header is no JSON object: {e}; write the file again"
                ))
            })?,
            None if path.file_name().is_some_and(|name| name == CONFIG.1) && sidecar.is_file() => {
                Some(read_json(sidecar)?)
            }
            None => None,
        };
        let config = config.unwrap_or_default();
        check(&config).map_err(|reason| wrong(format!("{reason} in PEFT's configuration; write the file again")))?;
        let number = |text: &str| text.parse().ok().filter(|alpha: &f64| alpha.is_finite());
        let alpha = match fact(NETWORK_ALPHA) {
            None | Some("None") => None,
            Some(text) => Some(number(text).ok_or_else(|| {
                let shown = shortened(text, LONGEST);
                wrong(format!(
                    "`{NETWORK_ALPHA}` in its header is `{shown}`, expected a number; write the file again"
                ))
            })?),
        };
        Ok(Self { config, alpha })
    }

    /// Returns `true` if PEFT's configuration enables DoRA.
    pub(super) fn says_dora(&self, target: LoraTarget) -> bool {
        self.field(target, "use_dora").and_then(Value::as_bool).unwrap_or(false)
    }

    /// Returns the LoRA scale of a layer, by its name in the file and its rank. If its factors do not show
    /// the rank, it is that in PEFT's configuration, and without one the scale is 1.
    pub(super) fn scale(&self, target: LoraTarget, module: &str, rank: Option<f64>) -> f64 {
        let number = |name| self.field(target, name).and_then(Value::as_f64);
        let Some(rank) = rank.or_else(|| number("r")) else {
            return 1.0;
        };
        let patterns = self.field(target, "alpha_pattern").and_then(Value::as_object);
        let own = patterns
            .into_iter()
            .flatten()
            .find(|(pattern, _)| fits(pattern, module));
        let general = || number("lora_alpha").or_else(|| number("alpha"));
        let alpha = own
            .and_then(|(_, alpha)| alpha.as_f64())
            .or_else(general)
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

    /// Returns a field of the configuration; `null` is none.
    fn field(&self, target: LoraTarget, name: &str) -> Option<&Value> {
        let prefix = match target {
            LoraTarget::Transformer => "transformer",
            LoraTarget::Clip => "text_encoder",
            LoraTarget::T5 => "text_encoder_2",
        };
        let value = self.config.get(&format!("{prefix}.{name}"));
        let value = value.or_else(|| self.config.get(name));
        value.filter(|value| !value.is_null())
    }
}

/// Checks the kinds of the fields that are read. A value of another kind would be ignored, and the scale be
/// another one.
fn check(config: &BTreeMap<String, Value>) -> std::result::Result<(), String> {
    let finite = |value: &Value| value.as_f64().is_some_and(|number| (number as f32).is_finite());
    for (name, value) in config.iter().filter(|(_, value)| !value.is_null()) {
        let field = name.rsplit('.').next().unwrap_or_default();
        let (fits, expected) = match field {
            "lora_alpha" | "alpha" => (finite(value), "a number"),
            "r" => (finite(value) && value.as_f64() > Some(0.0), "a number above 0"),
            "use_rslora" | "use_dora" => (value.is_boolean(), "true or false"),
            "alpha_pattern" => {
                let numbers = value.as_object().is_some_and(|all| all.values().all(finite));
                (numbers, "an object of numbers")
            }
            _ => continue,
        };
        if !fits {
            return Err(format!(
                "expected {expected} for `{name}`, got `{}`",
                shortened(&value.to_string(), LONGEST)
            ));
        }
    }
    Ok(())
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
        let scale = |scaling: &Scaling, module: &str| scaling.scale(LoraTarget::Transformer, module, Some(4.0));
        assert_eq!(scale(&read(&[]).unwrap(), "x_embedder"), 1.0);
        assert_eq!(scale(&read(&[(NETWORK_ALPHA, "2")]).unwrap(), "x_embedder"), 0.5);
        let text = r#"{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"to_q": 1, "^proj_out": 2}, "text_encoder.lora_alpha": 6}"#;
        let scaling = read(&[(METADATA, text)]).unwrap();
        assert_eq!(scale(&scaling, "x_embedder"), 2.0);
        assert_eq!(scale(&scaling, "transformer_blocks.0.attn.to_q"), 0.25);
        assert_eq!(scale(&scaling, "proj_out"), 0.5);
        assert_eq!(scale(&scaling, "single_transformer_blocks.0.proj_out"), 2.0);
        assert_eq!(scaling.scale(LoraTarget::Clip, "mlp.fc1", Some(4.0)), 1.5);
        assert_eq!(
            scale(
                &read(&[(METADATA, r#"{"lora_alpha": 8, "use_rslora": true}"#)]).unwrap(),
                "a"
            ),
            4.0
        );
        assert!(read(&[(METADATA, "{")]).is_err());
    }

    #[test]
    fn metadata_without_a_word_is_none_and_of_another_kind_an_error() {
        let read = |name: &str, text: &str| {
            let facts = BTreeMap::from([(name.to_owned(), text.to_owned())]);
            Scaling::of(Path::new("lora.safetensors"), &facts)
        };
        let scale = |scaling: &Scaling| scaling.scale(LoraTarget::Transformer, "x_embedder", Some(4.0));
        for text in [
            "",
            " \n",
            "null",
            "{}",
            r#"{"lora_alpha": null, "alpha_pattern": null, "use_rslora": null}"#,
        ] {
            assert_eq!(scale(&read(METADATA, text).unwrap()), 1.0, "{text}");
        }
        for text in ["", "None"] {
            assert_eq!(scale(&read(NETWORK_ALPHA, text).unwrap()), 1.0, "{text}");
        }
        for text in ["[]", "3", "\"x\"", "{", r#"{"a": NaN}"#, r#"{"a": 1e999}"#] {
            let error = std::error::Error::source(&read(METADATA, text).unwrap_err())
                .unwrap()
                .to_string();
            assert!(
                error.contains("`lora_adapter_metadata` in its header is no JSON object"),
                "{error}"
            );
        }
        for text in ["x", "NaN", "inf", "1e999"] {
            let error = std::error::Error::source(&read(NETWORK_ALPHA, text).unwrap_err())
                .unwrap()
                .to_string();
            assert!(
                error.contains(&format!("`network_alpha` in its header is `{text}`")),
                "{error}"
            );
        }
        for (text, expected) in [
            (r#"{"lora_alpha": "8"}"#, "a number for `lora_alpha`, got `\"8\"`"),
            (
                r#"{"transformer.alpha_pattern": [1]}"#,
                "an object of numbers for `transformer.alpha_pattern`",
            ),
            (
                r#"{"alpha_pattern": {"x_embedder": "1"}}"#,
                "an object of numbers for `alpha_pattern`",
            ),
            (
                r#"{"lora_alpha": 8, "use_rslora": "yes"}"#,
                "true or false for `use_rslora`",
            ),
            (r#"{"alpha": 1e300}"#, "a number for `alpha`"),
            (r#"{"alpha": 1, "r": 0}"#, "a number above 0 for `r`"),
        ] {
            let error = std::error::Error::source(&read(METADATA, text).unwrap_err())
                .unwrap()
                .to_string();
            assert!(
                error.starts_with(&format!("the LoRA cannot be used: expected {expected}")),
                "{error}"
            );
        }
    }
}
