//! Inference of an autoencoder's configuration from tensor shapes, for files without a `config.json`.

use kontext_core::{CheckpointError, Error, Result};
use kontext_nn::Weights;

use crate::names::Naming;
use crate::{TinyConfig, VaeConfig};

/// Tensor shapes of a file, looked up by today's diffusers names.
struct Shapes<'a> {
    weights: &'a Weights,
    naming: Naming,
    prefix: String,
}

impl<'a> Shapes<'a> {
    fn new(weights: &'a Weights) -> Result<Self> {
        let (naming, prefix) = Naming::of(weights)?;
        Ok(Self {
            weights,
            naming,
            prefix,
        })
    }

    /// Returns the file's name of a tensor.
    fn name(&self, name: &str) -> String {
        let recipe = self.naming.map()(&format!("{}{name}", self.prefix));
        recipe.names().join(" + ")
    }

    fn has(&self, name: &str) -> bool {
        self.weights.shape_of(&self.name(name)).is_some()
    }

    /// Returns the size of a weight along `dim`.
    fn size(&self, name: &str, dim: usize) -> Result<i64> {
        let name = self.name(name);
        let size = self.weights.shape_of(&name).and_then(|shape| shape.get(dim).copied());
        size.ok_or_else(|| Error::checkpoint(self.weights.path())(CheckpointError::Missing { name, nearest: None }))
    }

    /// Returns the output channels of a weight.
    fn rows(&self, name: &str) -> Result<i64> {
        self.size(name, 0)
    }

    /// Returns the input channels of a weight.
    fn columns(&self, name: &str) -> Result<i64> {
        self.size(name, 1)
    }

    /// Counts the consecutive tensors `name(0)`, `name(1)`, … in the file.
    fn count(&self, name: impl Fn(i64) -> String) -> i64 {
        (0..).take_while(|i| self.has(&name(*i))).count() as i64
    }
}

impl VaeConfig {
    /// Infers the configuration from the tensor shapes of a file in any [`Naming`] of an AutoencoderKL.
    ///
    /// The rest comes from a preset: 32 groups, and the scale and shift of [`VaeConfig::flux`] for 16 latent
    /// channels or of [`VaeConfig::sd15`] for 4. Stable Diffusion 3 and XL have the same shapes as these two;
    /// use their presets by name.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the file contains no autoencoder, lacks a required tensor, or has another
    /// number of latent channels.
    pub fn infer(weights: &Weights) -> Result<Self> {
        let shapes = Shapes::new(weights)?;
        let level = |i: i64| shapes.rows(&format!("encoder.down_blocks.{i}.resnets.0.conv1.weight"));
        let latent_channels = shapes.columns("decoder.conv_in.weight")?;
        let preset = match latent_channels {
            16 => Self::flux(),
            4 => Self::sd15(),
            other => {
                let reason = format!("latent channels: expected 4 or 16, got {other}; say the scale by a config.json");
                return Err(Error::config(weights.path(), reason));
            }
        };
        Ok(Self {
            in_channels: shapes.columns("encoder.conv_in.weight")?,
            out_channels: shapes.rows("decoder.conv_out.weight")?,
            latent_channels,
            block_out_channels: [level(0)?, level(1)?, level(2)?, level(3)?],
            layers_per_block: shapes.count(|j| format!("encoder.down_blocks.0.resnets.{j}.conv1.weight")),
            use_quant_conv: shapes.has("quant_conv.weight"),
            use_post_quant_conv: shapes.has("post_quant_conv.weight"),
            ..preset
        })
    }
}

impl TinyConfig {
    /// Infers the configuration from the tensor shapes of a file. The number of blocks per level follows from
    /// the layer numbers.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the file contains no AutoencoderTiny.
    pub fn infer(weights: &Weights) -> Result<Self> {
        let shapes = Shapes::new(weights)?;
        let (encoder, encoder_out) = tiny_levels(&shapes, "encoder")?;
        let (decoder, decoder_out) = tiny_levels(&shapes, "decoder")?;
        Ok(Self {
            in_channels: shapes.columns("encoder.layers.0.weight")?,
            out_channels: shapes.rows(&decoder_out)?,
            latent_channels: shapes.rows(&encoder_out)?,
            encoder_width: shapes.rows("encoder.layers.0.weight")?,
            decoder_width: shapes.rows("decoder.layers.0.weight")?,
            num_encoder_blocks: encoder,
            num_decoder_blocks: decoder,
            ..Self::taesd()
        })
    }
}

/// Returns the number of blocks in each level of an AutoencoderTiny's encoder or decoder, and the name of its
/// last weight.
///
/// A level is a run of blocks that ends with a convolution; layers without weights (ReLU, upsampling) are
/// skipped.
fn tiny_levels(shapes: &Shapes<'_>, half: &str) -> Result<([i64; 4], String)> {
    /// Number of consecutive layers without weights at which the search stops.
    const GAP: usize = 3;
    let (mut levels, mut blocks, mut last) = (Vec::new(), 0, String::new());
    let (mut layer, mut absent) = (1, 0);
    while absent < GAP {
        let name = format!("{half}.layers.{layer}.weight");
        absent += 1;
        if shapes.has(&format!("{half}.layers.{layer}.conv.0.weight")) {
            (blocks, absent) = (blocks + 1, 0);
        } else if shapes.has(&name) {
            levels.push(std::mem::take(&mut blocks));
            (last, absent) = (name, 0);
        }
        layer += 1;
    }
    let reason = |levels: Vec<i64>| format!("{half}: expected 4 levels, got {}", levels.len());
    let levels = levels
        .try_into()
        .map_err(|l| Error::config(shapes.weights.path(), reason(l)))?;
    Ok((levels, last))
}
