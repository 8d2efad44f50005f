//! Configuration of an AutoencoderTiny.
//!
//! Source: huggingface/diffusers v0.38 models/autoencoders/autoencoder_tiny.py, AutoencoderTiny.__init__.

use std::path::Path;

use kontext_core::{Error, Result, check_class, range, read_json};
use serde::Deserialize;

use crate::config::{MOST_BLOCKS, OTHER, WIDEST, check_scale};

/// Configuration of an [`crate::AutoencoderTiny`].
///
/// # Example
/// ```
/// use kontext_vae::TinyConfig;
/// assert_eq!(TinyConfig::taef1(), TinyConfig { latent_channels: 16, ..TinyConfig::taesd() });
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TinyConfig {
    /// Colour channels of the input images.
    pub in_channels: i64,
    /// Colour channels of the output images.
    pub out_channels: i64,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Channels of every layer of the encoder.
    pub encoder_width: i64,
    /// Channels of every layer of the decoder.
    pub decoder_width: i64,
    /// Residual blocks in each level of the encoder, from full size to an eighth.
    pub num_encoder_blocks: [i64; 4],
    /// Residual blocks in each level of the decoder, from an eighth to full size.
    pub num_decoder_blocks: [i64; 4],
    /// Scale of the latents, 1 in all published models: the diffusion model's input is
    /// `(z - shift_factor) * scaling_factor`.
    pub scaling_factor: f64,
    /// Shift of the latents, 0 in all published models; see `scaling_factor`.
    pub shift_factor: f64,
}

impl TinyConfig {
    /// Returns the configuration of TAESD and TAESDXL, for the latents of Stable Diffusion 1, 2 and XL.
    #[must_use]
    pub fn taesd() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            encoder_width: 64,
            decoder_width: 64,
            num_encoder_blocks: [1, 3, 3, 3],
            num_decoder_blocks: [3, 3, 3, 1],
            scaling_factor: 1.0,
            shift_factor: 0.0,
        }
    }

    /// Returns the configuration of TAEF1 and TAESD3, for the latents of FLUX.1 and of Stable Diffusion 3.
    #[must_use]
    pub fn taef1() -> Self {
        Self {
            latent_channels: 16,
            ..Self::taesd()
        }
    }

    /// Reads diffusers' `config.json`; absent fields take diffusers' defaults.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] if it is not the configuration of an
    /// AutoencoderTiny, or describes an architecture other than the published ones.
    pub fn from_json(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fields: Fields = read_json(path)?;
        check_class(path, "_class_name", fields.class_name.as_deref(), &["AutoencoderTiny"])?;
        let config = fields
            .config()
            .map_err(|reason| Error::config(path, format!("{reason}; {OTHER}")))?;
        config.validate().map_err(Error::in_config(path))?;
        Ok(config)
    }

    /// Checks that all sizes are in range.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names the field.
    pub fn validate(&self) -> Result<()> {
        range::within("in_channels", self.in_channels, 1..=WIDEST)?;
        range::within("out_channels", self.out_channels, 1..=WIDEST)?;
        range::within("latent_channels", self.latent_channels, 1..=WIDEST)?;
        range::within("encoder_width", self.encoder_width, 1..=WIDEST)?;
        range::within("decoder_width", self.decoder_width, 1..=WIDEST)?;
        let blocks = [self.num_encoder_blocks, self.num_decoder_blocks].concat();
        if let Some(blocks) = blocks.into_iter().find(|b| !(0..=MOST_BLOCKS).contains(b)) {
            let name = "num_encoder_blocks, num_decoder_blocks";
            return Err(Error::invalid(
                name,
                format!("0 to {MOST_BLOCKS} in each level"),
                blocks,
            ));
        }
        check_scale(self.scaling_factor, self.shift_factor)
    }
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
    encoder_block_out_channels: Vec<i64>,
    decoder_block_out_channels: Vec<i64>,
    num_encoder_blocks: [i64; 4],
    num_decoder_blocks: [i64; 4],
    act_fn: String,
    upsample_fn: String,
    upsampling_scaling_factor: i64,
    scaling_factor: f64,
    shift_factor: Option<f64>,
}

impl Default for Fields {
    fn default() -> Self {
        let taesd = TinyConfig::taesd();
        Self {
            class_name: None,
            in_channels: taesd.in_channels,
            out_channels: taesd.out_channels,
            latent_channels: taesd.latent_channels,
            encoder_block_out_channels: vec![taesd.encoder_width; 4],
            decoder_block_out_channels: vec![taesd.decoder_width; 4],
            num_encoder_blocks: taesd.num_encoder_blocks,
            num_decoder_blocks: taesd.num_decoder_blocks,
            act_fn: "relu".to_owned(),
            upsample_fn: "nearest".to_owned(),
            upsampling_scaling_factor: 2,
            scaling_factor: taesd.scaling_factor,
            shift_factor: None,
        }
    }
}

impl Fields {
    /// Converts the fields to a configuration; the error is the reason why the model is not supported.
    fn config(&self) -> Result<TinyConfig, String> {
        if self.act_fn != "relu" {
            return Err(format!("act_fn: expected relu, got {}", self.act_fn));
        }
        if self.upsample_fn != "nearest" || self.upsampling_scaling_factor != 2 {
            let got = format!("{} by {}", self.upsample_fn, self.upsampling_scaling_factor);
            return Err(format!(
                "upsample_fn, upsampling_scaling_factor: expected nearest by 2, got {got}"
            ));
        }
        Ok(TinyConfig {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            latent_channels: self.latent_channels,
            encoder_width: same("encoder_block_out_channels", &self.encoder_block_out_channels)?,
            decoder_width: same("decoder_block_out_channels", &self.decoder_block_out_channels)?,
            num_encoder_blocks: self.num_encoder_blocks,
            num_decoder_blocks: self.num_decoder_blocks,
            scaling_factor: self.scaling_factor,
            shift_factor: self.shift_factor.unwrap_or_default(),
        })
    }
}

/// Returns the common width of all four levels: diffusers' model has no layer that changes it.
fn same(field: &str, widths: &[i64]) -> Result<i64, String> {
    match widths {
        [width, rest @ ..] if rest.len() == 3 && rest.iter().all(|w| w == width) => Ok(*width),
        other => Err(format!("{field}: expected four times one width, got {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_missing_have_the_defaults_of_diffusers() {
        let parse = |json: &str| serde_json::from_str::<Fields>(json).unwrap().config();
        assert_eq!(parse("{}").unwrap(), TinyConfig::taesd());
        assert_eq!(
            parse(r#"{"latent_channels": 16, "shift_factor": null}"#).unwrap(),
            TinyConfig::taef1()
        );
        let error = parse(r#"{"encoder_block_out_channels": [64, 64, 64, 32]}"#).unwrap_err();
        assert!(error.starts_with("encoder_block_out_channels: expected four times one width"));
    }
}
