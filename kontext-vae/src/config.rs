//! Configuration of an AutoencoderKL and the scale of its latents.
//!
//! Source: huggingface/diffusers v0.38 models/autoencoders/autoencoder_kl.py, AutoencoderKL.__init__.

use std::path::Path;

use kontext_core::{Error, Result, check_class, range, read_json};
use serde::Deserialize;
use serde_json::Value;

/// Configuration of an [`crate::AutoencoderKl`], with the field names of diffusers' `config.json`.
///
/// # Example
/// ```
/// use kontext_vae::VaeConfig;
/// let flux = VaeConfig::flux();
/// assert_eq!((flux.latent_channels, flux.scaling_factor, flux.shift_factor), (16, 0.3611, 0.1159));
/// assert_eq!(VaeConfig::sd3(), VaeConfig { scaling_factor: 1.5305, shift_factor: 0.0609, ..flux });
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Colour channels of the input images.
    pub in_channels: i64,
    /// Colour channels of the output images.
    pub out_channels: i64,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Channels of each of the four levels, from full size to an eighth.
    pub block_out_channels: [i64; 4],
    /// Residual blocks in each level of the encoder; the decoder has one more.
    pub layers_per_block: i64,
    /// Number of groups in the group norms.
    pub norm_num_groups: i64,
    /// If set, a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// If set, a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Scale of the latents: the diffusion model's input is `(z - shift_factor) * scaling_factor`.
    pub scaling_factor: f64,
    /// Shift of the latents; see `scaling_factor`.
    pub shift_factor: f64,
}

impl VaeConfig {
    /// Returns the configuration of FLUX.1, all variants: 16 latent channels.
    #[must_use]
    pub fn flux() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 16,
            block_out_channels: [128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            use_quant_conv: false,
            use_post_quant_conv: false,
            scaling_factor: 0.3611,
            shift_factor: 0.1159,
        }
    }

    /// Returns the configuration of Stable Diffusion 3 and 3.5: the sizes of FLUX.1 with another scale.
    #[must_use]
    pub fn sd3() -> Self {
        Self {
            scaling_factor: 1.5305,
            shift_factor: 0.0609,
            ..Self::flux()
        }
    }

    /// Returns the configuration of Stable Diffusion XL: 4 latent channels.
    #[must_use]
    pub fn sdxl() -> Self {
        Self {
            latent_channels: 4,
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: 0.13025,
            shift_factor: 0.0,
            ..Self::flux()
        }
    }

    /// Returns the configuration of Stable Diffusion 1 and 2: the sizes of SDXL with another scale.
    #[must_use]
    pub fn sd15() -> Self {
        Self {
            scaling_factor: 0.18215,
            ..Self::sdxl()
        }
    }

    /// Reads diffusers' `config.json`; absent fields take diffusers' defaults.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] if it is not the configuration of an
    /// AutoencoderKL, or describes an architecture other than the presets'.
    pub fn from_json(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fields: Fields = read_json(path)?;
        check_class(path, "_class_name", fields.class_name.as_deref(), &["AutoencoderKL"])?;
        let config = fields
            .config()
            .map_err(|reason| Error::config(path, format!("{reason}; {OTHER}")))?;
        config.validate().map_err(Error::in_config(path))?;
        Ok(config)
    }

    /// Checks that all sizes are in range and consistent.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names the field.
    pub fn validate(&self) -> Result<()> {
        range::within("in_channels", self.in_channels, 1..=WIDEST)?;
        range::within("out_channels", self.out_channels, 1..=WIDEST)?;
        range::within("latent_channels", self.latent_channels, 1..=WIDEST)?;
        range::within("layers_per_block", self.layers_per_block, 1..=MOST_BLOCKS)?;
        range::within("norm_num_groups", self.norm_num_groups, 1..=WIDEST)?;
        for channels in self.block_out_channels {
            range::within("block_out_channels", channels, 1..=WIDEST)?;
            if channels % self.norm_num_groups != 0 {
                let expected = format!("multiples of norm_num_groups, which is {}", self.norm_num_groups);
                return Err(Error::invalid("block_out_channels", expected, channels));
            }
        }
        check_scale(self.scaling_factor, self.shift_factor)
    }
}

/// Remedy for a configuration of another architecture.
pub(crate) const OTHER: &str = "it is of another model, fetch the autoencoder of FLUX.1";
/// Upper bound of channels, above those of any autoencoder: a damaged value is reported before it costs
/// memory or time.
pub(crate) const WIDEST: i64 = 1 << 16;
/// Upper bound of the number of blocks in a level.
pub(crate) const MOST_BLOCKS: i64 = 100;

pub(crate) fn check_scale(scaling_factor: f64, shift_factor: f64) -> Result<()> {
    // Those of published autoencoders are 0.13 to 1.53, and -0.03 to 0.12.
    range::within("scaling_factor", scaling_factor, 1e-3..=1e3)?;
    range::within("shift_factor", shift_factor, -1e3..=1e3).map(drop)
}

/// Fields of `config.json` that determine the architecture, with diffusers' defaults.
#[derive(Deserialize)]
#[serde(default)]
struct Fields {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    in_channels: i64,
    out_channels: i64,
    latent_channels: i64,
    block_out_channels: Vec<i64>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    layers_per_block: i64,
    norm_num_groups: i64,
    act_fn: String,
    mid_block_add_attention: bool,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
    scaling_factor: f64,
    shift_factor: Option<f64>,
    latents_mean: Option<Value>,
    latents_std: Option<Value>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            class_name: None,
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            down_block_types: vec!["DownEncoderBlock2D".to_owned()],
            up_block_types: vec!["UpDecoderBlock2D".to_owned()],
            layers_per_block: 1,
            norm_num_groups: 32,
            act_fn: "silu".to_owned(),
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
        }
    }
}

impl Fields {
    /// Converts the fields to a configuration; the error is the reason why the model is not supported.
    fn config(self) -> Result<VaeConfig, String> {
        let levels = self.block_out_channels.len();
        let block_out_channels = self.block_out_channels.try_into();
        let block_out_channels =
            block_out_channels.map_err(|_| format!("block_out_channels: expected 4 levels, got {levels}"))?;
        let other_down = self.down_block_types.iter().find(|t| *t != "DownEncoderBlock2D");
        let other_up = self.up_block_types.iter().find(|t| *t != "UpDecoderBlock2D");
        if let Some(other) = other_down.or(other_up) {
            return Err(format!(
                "block types: expected DownEncoderBlock2D and UpDecoderBlock2D, got {other}"
            ));
        }
        if self.act_fn != "silu" && self.act_fn != "swish" {
            return Err(format!("act_fn: expected silu, got {}", self.act_fn));
        }
        if !self.mid_block_add_attention {
            return Err("mid_block_add_attention: expected true, got false".to_owned());
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return Err("latents_mean, latents_std: expected null, got a scale for each channel".to_owned());
        }
        Ok(VaeConfig {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            latent_channels: self.latent_channels,
            block_out_channels,
            layers_per_block: self.layers_per_block,
            norm_num_groups: self.norm_num_groups,
            use_quant_conv: self.use_quant_conv,
            use_post_quant_conv: self.use_post_quant_conv,
            scaling_factor: self.scaling_factor,
            shift_factor: self.shift_factor.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<VaeConfig, String> {
        serde_json::from_str::<Fields>(json).unwrap().config()
    }

    #[test]
    fn fields_that_are_missing_have_the_defaults_of_diffusers() {
        let config = parse(r#"{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}"#).unwrap();
        assert_eq!(config, VaeConfig::sd15());
    }

    #[test]
    fn a_model_that_is_built_otherwise_is_refused_by_the_fields_name() {
        assert_eq!(parse("{}").unwrap_err(), "block_out_channels: expected 4 levels, got 1");
        for (field, value) in [
            ("act_fn", r#""gelu""#),
            ("mid_block_add_attention", "false"),
            ("latents_std", "[1.0]"),
        ] {
            let json = format!(r#"{{"block_out_channels": [8, 8, 8, 8], "{field}": {value}}}"#);
            assert!(parse(&json).unwrap_err().contains(field));
        }
    }

    #[test]
    fn sizes_that_cannot_be_built_are_refused_by_the_fields_name() {
        let error = VaeConfig {
            norm_num_groups: 48,
            ..VaeConfig::flux()
        }
        .validate()
        .unwrap_err();
        let expected = "invalid block_out_channels: expected multiples of norm_num_groups, which is 48, got 128";
        assert_eq!(error.to_string(), expected);
        for scaling_factor in [0.0, -1.0, 1e9, f64::NAN] {
            let config = VaeConfig {
                scaling_factor,
                ..VaeConfig::flux()
            };
            let expected =
                format!("invalid scaling_factor: expected a number from 0.001 to 1000, got {scaling_factor}");
            assert_eq!(config.validate().unwrap_err().to_string(), expected);
        }
        VaeConfig::flux().validate().unwrap();
        VaeConfig::sd15().validate().unwrap();
    }

    #[test]
    fn the_published_configuration_of_flux_is_the_preset() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/assets/flux1-layout");
        for model in ["FLUX.1-dev", "FLUX.1-schnell"] {
            let path = format!("{root}/{model}/vae/config.json");
            if Path::new(&path).is_file() {
                assert_eq!(VaeConfig::from_json(&path).unwrap(), VaeConfig::flux());
            } else {
                println!("skipped: no {path}");
            }
        }
    }
}
