//! Configuration of the transformer.

use std::path::Path;

use kontext_core::{Error, Result, check_class, read_json};
use kontext_nn::Weights;
use serde::Deserialize;

use crate::names;

/// Configuration of the transformer. The presets are the published models; every field may be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DitConfig {
    /// Features of a latent token: 16 channels of a 2x2 patch.
    pub in_channels: i64,
    /// Features of a predicted token.
    pub out_channels: i64,
    /// Number of attention heads; the width of the model is `heads * head_dim`.
    pub heads: i64,
    /// Width of a head.
    pub head_dim: i64,
    /// Features of a head rotated by each position axis (t, y, x); they add up to `head_dim`.
    pub axes_dim: [i64; 3],
    /// Width of the MLPs in the blocks.
    pub mlp_width: i64,
    /// Number of double-stream blocks.
    pub double_blocks: i64,
    /// Number of single-stream blocks.
    pub single_blocks: i64,
    /// Width of a text token.
    pub context_dim: i64,
    /// Width of the pooled text vector.
    pub pooled_dim: i64,
    /// `true` if guidance is embedded (guidance-distilled models), `false` if it is ignored (schnell).
    pub guidance_embed: bool,
}

/// Fields of diffusers' `transformer/config.json`, with diffusers' defaults.
#[derive(Deserialize)]
#[serde(default)]
struct DiffusersConfig {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    patch_size: i64,
    in_channels: i64,
    out_channels: Option<i64>,
    num_layers: i64,
    num_single_layers: i64,
    attention_head_dim: i64,
    num_attention_heads: i64,
    joint_attention_dim: i64,
    pooled_projection_dim: i64,
    guidance_embeds: bool,
    axes_dims_rope: [i64; 3],
}

impl Default for DiffusersConfig {
    fn default() -> Self {
        Self {
            class_name: None,
            patch_size: 1,
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: [16, 56, 56],
        }
    }
}

impl DitConfig {
    /// Returns the configuration of FLUX.1 Kontext dev, which has the sizes of FLUX.1-dev.
    ///
    /// ```
    /// let config = kontext_dit::DitConfig::kontext_dev();
    /// assert_eq!((config.width(), config.double_blocks, config.single_blocks), (3072, 19, 38));
    /// ```
    #[must_use]
    pub fn kontext_dev() -> Self {
        Self {
            in_channels: 64,
            out_channels: 64,
            heads: 24,
            head_dim: 128,
            axes_dim: [16, 56, 56],
            mlp_width: 12_288,
            double_blocks: 19,
            single_blocks: 38,
            context_dim: 4096,
            pooled_dim: 768,
            guidance_embed: true,
        }
    }

    /// Returns the configuration of FLUX.1-schnell: no guidance embedding.
    #[must_use]
    pub fn schnell() -> Self {
        Self {
            guidance_embed: false,
            ..Self::kontext_dev()
        }
    }

    /// Returns the width of the model.
    #[must_use]
    pub fn width(&self) -> i64 {
        self.heads.saturating_mul(self.head_dim)
    }

    /// Reads diffusers' `transformer/config.json`.
    ///
    /// # Errors
    /// [`Error::Io`], or a checkpoint error if the file is not a valid configuration.
    pub fn from_json(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json: DiffusersConfig = read_json(path)?;
        check_class(
            path,
            "_class_name",
            json.class_name.as_deref(),
            &["FluxTransformer2DModel"],
        )?;
        if json.patch_size != 1 {
            return Err(Error::config(
                path,
                format!("patch_size is {}, only 1 is known", json.patch_size),
            ));
        }
        let config = Self {
            in_channels: json.in_channels,
            out_channels: json.out_channels.unwrap_or(json.in_channels),
            heads: json.num_attention_heads,
            head_dim: json.attention_head_dim,
            axes_dim: json.axes_dims_rope,
            // diffusers fixes the ratio at 4.
            mlp_width: json
                .num_attention_heads
                .saturating_mul(json.attention_head_dim)
                .saturating_mul(4),
            double_blocks: json.num_layers,
            single_blocks: json.num_single_layers,
            context_dim: json.joint_attention_dim,
            pooled_dim: json.pooled_projection_dim,
            guidance_embed: json.guidance_embeds,
        };
        config.validate().map_err(|reason| Error::config(path, reason))?;
        Ok(config)
    }

    /// Infers the sizes from the tensor shapes of a single file in the naming of BFL or of diffusers.
    ///
    /// Shapes do not determine the axes: a head of width D is split into D/8, 7D/16, 7D/16 (16, 56, 56 at
    /// 128).
    ///
    /// # Errors
    /// A checkpoint error if a required tensor is missing.
    pub fn infer(weights: &Weights) -> Result<Self> {
        let path = weights.path();
        let diffusers = weights.shape_of("img_in.weight").is_none() && weights.shape_of("x_embedder.weight").is_some();
        let in_file = |name: &str| {
            let map = names::diffusers(name);
            if diffusers {
                map.names().to_vec()
            } else {
                vec![name.to_owned()]
            }
        };
        // Of the tensors asked for, only the fused projection of a single block is several in diffusers' files; its
        // rows add up.
        let size = |name: &str, axis: usize| {
            let mut total = 0;
            for name in in_file(name) {
                let Some(shape) = weights.shape_of(&name) else {
                    let reason = format!(
                        "no tensor `{name}` to infer the transformer's sizes from; the file is incomplete or of \
                         another model, fetch the right one"
                    );
                    return Err(Error::config(path, reason));
                };
                let size = shape.get(axis).copied().ok_or_else(|| {
                    Error::config(path, format!("tensor `{name}` has shape {shape:?}, expected two sizes"))
                })?;
                total = if axis == 0 { size + total } else { size };
            }
            Ok(total)
        };
        let count = |prefix: &str| {
            let names = weights.names();
            let index = |n: &String| n.strip_prefix(prefix)?.split('.').next()?.parse::<i64>().ok();
            names
                .iter()
                .filter_map(index)
                .max()
                .map_or(0, |last| last.saturating_add(1))
        };
        let [double, single] = if diffusers {
            ["transformer_blocks.", "single_transformer_blocks."]
        } else {
            ["double_blocks.", "single_blocks."]
        };
        let (width, in_channels) = (size("img_in.weight", 0)?, size("img_in.weight", 1)?);
        let double_blocks = count(double);
        let norm = if double_blocks > 0 {
            "double_blocks.0.img_attn.norm.query_norm.scale"
        } else {
            "single_blocks.0.norm.query_norm.scale"
        };
        let head_dim = size(norm, 0)?.max(1);
        let mlp_width = if double_blocks > 0 {
            size("double_blocks.0.img_mlp.0.weight", 0)?
        } else {
            size("single_blocks.0.linear1.weight", 0)?.saturating_sub(width.saturating_mul(3))
        };
        let guidance = in_file("guidance_in.in_layer.weight");
        let config = Self {
            in_channels,
            out_channels: size("final_layer.linear.weight", 0)?,
            heads: width / head_dim,
            head_dim,
            axes_dim: [
                head_dim / 8,
                head_dim.saturating_mul(7) / 16,
                head_dim.saturating_mul(7) / 16,
            ],
            mlp_width,
            double_blocks,
            single_blocks: count(single),
            context_dim: size("txt_in.weight", 1)?,
            pooled_dim: size("vector_in.in_layer.weight", 1)?,
            guidance_embed: guidance.iter().all(|name| weights.shape_of(name).is_some()),
        };
        config.validate().map_err(|reason| Error::config(path, reason))?;
        Ok(config)
    }

    /// Checks the sizes, as the reference does on construction.
    ///
    /// # Errors
    /// The reason, as text.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let sizes = [
            self.in_channels,
            self.out_channels,
            self.heads,
            self.head_dim,
            self.mlp_width,
            self.context_dim,
            self.pooled_dim,
        ];
        if sizes.iter().any(|s| !(1..=1 << 20).contains(s)) {
            return Err(format!("sizes must be between 1 and 1048576: {self:?}"));
        }
        let even = |d: &i64| (2..=self.head_dim).contains(d) && d % 2 == 0;
        if !self.axes_dim.iter().all(even) || self.axes_dim.iter().sum::<i64>() != self.head_dim {
            return Err(format!(
                "the position axes {:?} must be even, at least 2, and add up to the head width {}",
                self.axes_dim, self.head_dim
            ));
        }
        if !(0..=1000).contains(&self.double_blocks)
            || !(0..=1000).contains(&self.single_blocks)
            || self.double_blocks + self.single_blocks == 0
        {
            return Err(format!(
                "{} double and {} single blocks",
                self.double_blocks, self.single_blocks
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_without_features_is_refused() {
        let config = DitConfig {
            axes_dim: [0, 64, 64],
            ..DitConfig::kontext_dev()
        };
        assert!(
            config
                .validate()
                .unwrap_err()
                .contains("[0, 64, 64] must be even, at least 2")
        );
    }

    #[test]
    fn axes_must_add_up_to_the_head_width() {
        let config = DitConfig {
            axes_dim: [16, 56, 54],
            ..DitConfig::kontext_dev()
        };
        assert!(config.validate().unwrap_err().contains("add up to the head width 128"));
    }
}
