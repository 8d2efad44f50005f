//! Configuration of the transformer.

use std::path::Path;

use kontext_core::{Error, Result, check_class, range, read_json};
use serde::Deserialize;

/// Upper bound of sizes, above those of any transformer: a damaged value is reported before it costs memory or time.
const WIDEST: i64 = 1 << 20;
/// Upper bound of the number of blocks of each kind.
const MOST_BLOCKS: i64 = 1000;

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
                format!(
                    "patch_size is {}, only 1 is known: it is of another model, fetch the right one",
                    json.patch_size
                ),
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
        config.validate().map_err(Error::in_config(path))?;
        Ok(config)
    }

    /// Checks the sizes, as the reference does on construction.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names the field.
    pub fn validate(&self) -> Result<()> {
        for (name, size) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("heads", self.heads),
            ("head_dim", self.head_dim),
            ("mlp_width", self.mlp_width),
            ("context_dim", self.context_dim),
            ("pooled_dim", self.pooled_dim),
        ] {
            range::within(name, size, 1..=WIDEST)?;
        }
        let even = |d: &i64| (2..=self.head_dim).contains(d) && d % 2 == 0;
        if !self.axes_dim.iter().all(even) || self.axes_dim.iter().sum::<i64>() != self.head_dim {
            let expected = format!(
                "even widths of at least 2 that add up to head_dim, which is {}",
                self.head_dim
            );
            return Err(Error::invalid("axes_dim", expected, format!("{:?}", self.axes_dim)));
        }
        range::within("double_blocks", self.double_blocks, 0..=MOST_BLOCKS)?;
        range::within("single_blocks", self.single_blocks, 0..=MOST_BLOCKS)?;
        if self.double_blocks + self.single_blocks == 0 {
            return Err(Error::invalid(
                "double_blocks, single_blocks",
                "at least one block",
                "none",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: &DitConfig) -> String {
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn an_axis_without_features_is_refused() {
        let config = DitConfig {
            axes_dim: [0, 64, 64],
            ..DitConfig::kontext_dev()
        };
        let error = refused(&config);
        assert!(
            error.contains("even widths of at least 2") && error.ends_with("got [0, 64, 64]"),
            "{error}"
        );
    }

    #[test]
    fn a_size_out_of_range_is_named_by_its_field() {
        let config = DitConfig {
            pooled_dim: 0,
            ..DitConfig::kontext_dev()
        };
        assert_eq!(
            refused(&config),
            "invalid pooled_dim: expected a number from 1 to 1048576, got 0"
        );
        let config = DitConfig {
            double_blocks: 0,
            single_blocks: 0,
            ..DitConfig::kontext_dev()
        };
        assert!(refused(&config).ends_with("expected at least one block, got none"));
    }

    #[test]
    fn axes_must_add_up_to_the_head_width() {
        let config = DitConfig {
            axes_dim: [16, 56, 54],
            ..DitConfig::kontext_dev()
        };
        assert!(refused(&config).contains("add up to head_dim, which is 128"));
    }
}
