//! Configuration of a CLIP text model.

use std::path::Path;

use kontext_core::{Error, Result, range};
use kontext_nn::Weights;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Activation, load};

/// Value of [`ClipConfig::eos_token_id`] that means "the highest id of the prompt".
pub(crate) const HIGHEST_ID: i64 = 2;

/// Configuration of a CLIP text model; [`ClipConfig::large`] is FLUX.1's.
///
/// Deserialises from transformers' `config.json` of the text model or of a full CLIP (its `text_config`),
/// with the defaults of `CLIPTextConfig`.
///
/// Source: huggingface/transformers v4.57.6 `models/clip/configuration_clip.py` `CLIPTextConfig`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Json")]
pub struct ClipConfig {
    /// Vocabulary size: rows of the embedding table, exclusive upper bound of token ids.
    pub vocab_size: i64,
    /// Width of the hidden states and of the pooled vector.
    pub hidden_size: i64,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of attention heads.
    pub num_attention_heads: i64,
    /// Maximum number of tokens of a prompt.
    pub max_position_embeddings: i64,
    /// Activation function of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms, added to the variance.
    pub layer_norm_eps: f64,
    /// End token; the state at its first occurrence is the pooled vector. 2 means the highest id of the
    /// prompt: older configurations, including FLUX.1's, hold a 2, which the tokenizer never produces.
    pub eos_token_id: i64,
}

impl ClipConfig {
    /// Returns the configuration of CLIP ViT-L/14's text model, as used by FLUX.1: 123 million parameters.
    #[must_use]
    pub fn large() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: HIGHEST_ID,
        }
    }

    /// Infers the configuration from tensor shapes, by transformers' names.
    ///
    /// Heads are taken to be 64 wide; the other fields are those of [`ClipConfig::large`].
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a required tensor is missing or is not a matrix, or if the width is not a
    /// multiple of 64.
    pub fn infer(weights: &Weights) -> Result<Self> {
        const HEAD: i64 = 64;
        let prefix = if weights
            .shape_of("text_model.embeddings.token_embedding.weight")
            .is_some()
        {
            "text_model."
        } else {
            ""
        };
        let matrix = |name: &str| load::matrix(weights, &format!("{prefix}{name}"));
        let [vocab_size, hidden_size] = matrix("embeddings.token_embedding.weight")?;
        let [max_position_embeddings, _] = matrix("embeddings.position_embedding.weight")?;
        let [intermediate_size, _] = matrix("encoder.layers.0.mlp.fc1.weight")?;
        if hidden_size % HEAD != 0 {
            let reason = format!(
                "width {hidden_size} is not a multiple of {HEAD}, so the heads are not known; put the model's config.json next to it and open the folder"
            );
            return Err(Error::config(weights.path(), reason));
        }
        let config = Self {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: load::count_layers(weights, &format!("{prefix}encoder.layers.")),
            num_attention_heads: hidden_size / HEAD,
            max_position_embeddings,
            ..Self::large()
        };
        config.validate(weights.path())?;
        Ok(config)
    }

    /// Checks that all sizes are in range and the heads divide the width; `path` is named in the error.
    pub(crate) fn validate(&self, path: &Path) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, load::WIDEST),
            ("hidden_size", self.hidden_size, load::WIDEST),
            ("intermediate_size", self.intermediate_size, load::WIDEST),
            ("num_hidden_layers", self.num_hidden_layers, load::MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, load::WIDEST),
            ("max_position_embeddings", self.max_position_embeddings, load::WIDEST),
        ];
        load::in_range(path, &sizes)?;
        range::within("layer_norm_eps", self.layer_norm_eps, load::EPSILONS).map_err(Error::in_config(path))?;
        if self.hidden_size % self.num_attention_heads != 0 {
            let reason = format!(
                "`hidden_size` {} is not a multiple of `num_attention_heads` {}; correct it or fetch it again",
                self.hidden_size, self.num_attention_heads
            );
            return Err(Error::config(path, reason));
        }
        Ok(())
    }
}

/// `config.json` of the text model, or of a full CLIP that contains it.
#[derive(Deserialize)]
struct Json {
    model_type: Option<String>,
    /// A map, because a struct would also be read from a list.
    text_config: Option<Map<String, Value>>,
    #[serde(flatten)]
    text: Text,
}

#[derive(Deserialize)]
#[serde(default)]
struct Text {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    max_position_embeddings: i64,
    hidden_act: Activation,
    layer_norm_eps: f64,
    eos_token_id: i64,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
        }
    }
}

impl TryFrom<Json> for ClipConfig {
    type Error = String;

    fn try_from(json: Json) -> Result<Self, String> {
        load::of_type(json.model_type.as_deref(), &["clip_text_model", "clip"])?;
        let text = match json.text_config {
            None => json.text,
            Some(text) => {
                serde_json::from_value(Value::Object(text)).map_err(|error| format!("`text_config`: {error}"))?
            }
        };
        Ok(Self {
            vocab_size: text.vocab_size,
            hidden_size: text.hidden_size,
            intermediate_size: text.intermediate_size,
            num_hidden_layers: text.num_hidden_layers,
            num_attention_heads: text.num_attention_heads,
            max_position_embeddings: text.max_position_embeddings,
            hidden_act: text.hidden_act,
            layer_norm_eps: text.layer_norm_eps,
            eos_token_id: text.eos_token_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_model_is_found_in_the_configuration_of_the_whole() {
        let json = r#"{"model_type": "clip", "text_config": {"hidden_size": 768, "num_attention_heads": 12, "eos_token_id": 2}, "vision_config": {}}"#;
        let config: ClipConfig = serde_json::from_str(json).unwrap();
        assert_eq!(
            (config.hidden_size, config.num_attention_heads, config.eos_token_id),
            (768, 12, 2)
        );
        assert_eq!(config.intermediate_size, 2048);
    }

    #[test]
    fn a_list_and_another_model_are_no_configuration() {
        for (json, words) in [
            (r#"{"text_config": []}"#, "invalid type: sequence, expected a map"),
            (
                r#"{"model_type": "siglip"}"#,
                "`model_type` is siglip, expected clip_text_model or clip",
            ),
        ] {
            let error = serde_json::from_str::<ClipConfig>(json).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn an_epsilon_out_of_range_is_refused() {
        for layer_norm_eps in [-1.0, 9e18, f64::NAN] {
            let config = ClipConfig {
                layer_norm_eps,
                ..ClipConfig::large()
            };
            let error = config.validate(Path::new("config.json")).unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(
                cause.contains("invalid layer_norm_eps: expected a number from 0 to 0.1"),
                "{cause}"
            );
        }
    }

    #[test]
    fn heads_that_do_not_divide_the_width_are_refused() {
        let config = ClipConfig {
            num_attention_heads: 7,
            ..ClipConfig::large()
        };
        let error = config.validate(Path::new("config.json")).unwrap_err();
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .contains("768 is not a multiple")
        );
    }
}
