//! Configuration of a T5 encoder.

use std::path::Path;

use kontext_core::{Error, Result, range};
use kontext_nn::Weights;
use serde::Deserialize;

use crate::{Activation, load};

/// Configuration of a T5 encoder; [`T5Config::xxl`] is FLUX.1's.
///
/// Deserialises from transformers' `config.json`: absent fields take the defaults of its `T5Config`, and
/// decoder fields are ignored.
///
/// Source: huggingface/transformers v4.57.6 `models/t5/configuration_t5.py` `T5Config`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Json")]
pub struct T5Config {
    /// Vocabulary size: rows of the embedding table, exclusive upper bound of token ids.
    pub vocab_size: i64,
    /// Width of the hidden states.
    pub d_model: i64,
    /// Width of one head; `num_heads * d_kv` may differ from `d_model`.
    pub d_kv: i64,
    /// Inner width of the feed-forward layers.
    pub d_ff: i64,
    /// Number of blocks.
    pub num_layers: i64,
    /// Number of attention heads.
    pub num_heads: i64,
    /// Number of relative position buckets, half of them for keys after the query.
    pub relative_attention_num_buckets: i64,
    /// Distance in tokens from which all distances share a bucket.
    pub relative_attention_max_distance: i64,
    /// Epsilon of the RMS norms, added to the mean of squares.
    pub layer_norm_epsilon: f64,
    /// Activation function of the feed-forward layers.
    pub activation: Activation,
    /// `true` for the gated feed-forward layer `activation(wi_0 x) * wi_1 x` (v1.1), `false` for
    /// `activation(wi x)`.
    pub gated: bool,
}

impl T5Config {
    /// Returns the configuration of T5 v1.1 XXL, the text encoder of FLUX.1: 4.8 billion parameters.
    #[must_use]
    pub fn xxl() -> Self {
        Self {
            vocab_size: 32_128,
            d_model: 4096,
            d_kv: 64,
            d_ff: 10_240,
            num_layers: 24,
            num_heads: 64,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            activation: Activation::GeluTanh,
            gated: true,
        }
    }

    /// Infers the configuration from tensor shapes, by transformers' names.
    ///
    /// Fields that shapes do not determine are those of [`T5Config::xxl`]; an ungated model gets ReLU, as in
    /// every published T5.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a required tensor is missing or is not a matrix.
    pub fn infer(weights: &Weights) -> Result<Self> {
        const FIRST: &str = "encoder.block.0.layer";
        let embedding = if weights.shape_of("shared.weight").is_some() {
            "shared.weight"
        } else {
            "encoder.embed_tokens.weight"
        };
        let [vocab_size, d_model] = load::matrix(weights, embedding)?;
        let bias = format!("{FIRST}.0.SelfAttention.relative_attention_bias.weight");
        let [relative_attention_num_buckets, num_heads] = load::matrix(weights, &bias)?;
        let [inner, _] = load::matrix(weights, &format!("{FIRST}.0.SelfAttention.q.weight"))?;
        let gate = format!("{FIRST}.1.DenseReluDense.wi_0.weight");
        let gated = weights.shape_of(&gate).is_some();
        let [d_ff, _] = load::matrix(weights, &if gated { gate } else { gate.replace("wi_0", "wi") })?;
        let config = Self {
            vocab_size,
            d_model,
            d_kv: inner.checked_div(num_heads).unwrap_or_default(),
            d_ff,
            num_layers: load::count_layers(weights, "encoder.block."),
            num_heads,
            relative_attention_num_buckets,
            activation: if gated { Activation::GeluTanh } else { Activation::Relu },
            gated,
            ..Self::xxl()
        };
        config.validate(weights.path())?;
        Ok(config)
    }

    /// Checks that all sizes are in range; `path` is named in the error.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that names the first field out of range.
    pub(crate) fn validate(&self, path: &Path) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, load::WIDEST),
            ("d_model", self.d_model, load::WIDEST),
            ("d_kv", self.d_kv, load::WIDEST),
            ("d_ff", self.d_ff, load::WIDEST),
            ("num_layers", self.num_layers, load::MOST_LAYERS),
            ("num_heads", self.num_heads, load::WIDEST),
        ];
        load::in_range(path, &sizes)?;
        range::within("layer_norm_epsilon", self.layer_norm_epsilon, load::EPSILONS).map_err(Error::in_config(path))?;
        let (buckets, distance) = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        );
        if buckets < 4 || buckets % 4 != 0 || distance <= buckets / 4 {
            let reason = format!(
                "`relative_attention_num_buckets` {buckets} and `relative_attention_max_distance` {distance}: \
                 expected a multiple of 4, and more than a quarter of it; correct it or fetch it again"
            );
            return Err(Error::config(path, reason));
        }
        Ok(())
    }
}

/// transformers' `config.json`, with its defaults.
#[derive(Deserialize)]
#[serde(default)]
struct Json {
    model_type: Option<String>,
    vocab_size: i64,
    d_model: i64,
    d_kv: i64,
    d_ff: i64,
    num_layers: i64,
    num_heads: i64,
    relative_attention_num_buckets: i64,
    relative_attention_max_distance: i64,
    layer_norm_epsilon: f64,
    feed_forward_proj: String,
    /// Overrides `feed_forward_proj` if present, as in transformers; so does `is_gated_act`.
    dense_act_fn: Option<Activation>,
    is_gated_act: Option<bool>,
}

impl Default for Json {
    fn default() -> Self {
        Self {
            model_type: None,
            vocab_size: 32_128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            dense_act_fn: None,
            is_gated_act: None,
        }
    }
}

impl TryFrom<Json> for T5Config {
    type Error = String;

    fn try_from(json: Json) -> Result<Self, String> {
        load::of_type(json.model_type.as_deref(), &["t5", "mt5"])?;
        let (gated, function) = match json.feed_forward_proj.strip_prefix("gated-") {
            // transformers: "gated-gelu" has always meant the tanh approximation.
            Some("gelu") => (true, "gelu_new"),
            Some(function) => (true, function),
            None => (false, json.feed_forward_proj.as_str()),
        };
        let named = || {
            let name = serde_json::Value::from(function);
            serde_json::from_value(name).map_err(|e| format!("`feed_forward_proj` {}: {e}", json.feed_forward_proj))
        };
        Ok(Self {
            vocab_size: json.vocab_size,
            d_model: json.d_model,
            d_kv: json.d_kv,
            d_ff: json.d_ff,
            num_layers: json.num_layers,
            num_heads: json.num_heads,
            relative_attention_num_buckets: json.relative_attention_num_buckets,
            relative_attention_max_distance: json.relative_attention_max_distance,
            layer_norm_epsilon: json.layer_norm_epsilon,
            activation: json.dense_act_fn.map_or_else(named, Ok)?,
            gated: json.is_gated_act.unwrap_or(gated),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> T5Config {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn gated_gelu_is_the_tanh_approximation() {
        let config = read(r#"{"feed_forward_proj": "gated-gelu"}"#);
        assert_eq!((config.gated, config.activation), (true, Activation::GeluTanh));
        let config = read(r#"{"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": true}"#);
        assert_eq!((config.gated, config.activation), (true, Activation::GeluTanh));
    }

    #[test]
    fn an_empty_configuration_has_the_defaults_of_transformers() {
        let config = read("{}");
        assert_eq!(
            (config.d_model, config.d_ff, config.num_layers, config.num_heads),
            (512, 2048, 6, 8)
        );
        assert_eq!((config.gated, config.activation), (false, Activation::Relu));
    }

    #[test]
    fn an_unknown_function_is_named_in_the_error() {
        let error = serde_json::from_str::<T5Config>(r#"{"feed_forward_proj": "gated-tanh"}"#).unwrap_err();
        assert!(error.to_string().contains("gated-tanh"), "{error}");
    }

    #[test]
    fn an_epsilon_out_of_range_and_another_model_are_refused() {
        for layer_norm_epsilon in [-1e-6, 9e18] {
            let config = T5Config {
                layer_norm_epsilon,
                ..T5Config::xxl()
            };
            let error = config.validate(Path::new("config.json")).unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(
                cause.contains("invalid layer_norm_epsilon: expected a number from 0 to 0.1"),
                "{cause}"
            );
        }
        let error = serde_json::from_str::<T5Config>(r#"{"model_type": "umt5"}"#).unwrap_err();
        assert!(
            error.to_string().contains("`model_type` is umt5, expected t5 or mt5"),
            "{error}"
        );
    }

    #[test]
    fn a_size_of_zero_is_refused() {
        let config = T5Config {
            num_heads: 0,
            ..T5Config::xxl()
        };
        let error = config.validate(Path::new("config.json")).unwrap_err();
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .contains("invalid num_heads: expected a number from 1 to 1048576, got 0")
        );
    }
}
