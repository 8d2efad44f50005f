//! Sizes of an autoencoder from the shapes of its tensors, for files that come without a configuration.

use kontext_core::{CheckpointError, Error, Result};
use kontext_nn::Weights;

use crate::names::Naming;
use crate::{TinyConfig, VaeConfig};

/// The shapes of one file's tensors by the names that parts ask for.
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

    /// The name of a tensor in the file.
    fn name(&self, name: &str) -> String {
        let recipe = self.naming.map()(&format!("{}{name}", self.prefix));
        recipe.names().join(" + ")
    }

    fn has(&self, name: &str) -> bool {
        self.weights.shape_of(&self.name(name)).is_some()
    }

    /// One size of a weight.
    fn size(&self, name: &str, dim: usize) -> Result<i64> {
        let name = self.name(name);
        let size = self.weights.shape_of(&name).and_then(|shape| shape.get(dim).copied());
        size.ok_or_else(|| Error::checkpoint(self.weights.path())(CheckpointError::Missing { name, nearest: None }))
    }

    /// The output channels of a weight.
    fn rows(&self, name: &str) -> Result<i64> {
        self.size(name, 0)
    }

    /// The input channels of a weight.
    fn columns(&self, name: &str) -> Result<i64> {
        self.size(name, 1)
    }

    /// How many of the names that `name` makes of 0, 1, 2, … are there.
    fn count(&self, name: impl Fn(i64) -> String) -> i64 {
        (0..).take_while(|i| self.has(&name(*i))).count() as i64
    }
}

impl VaeConfig {
    /// Takes the sizes from the tensors of a file in any [`Naming`] of an AutoencoderKL.
    ///
    /// What shapes do not tell is taken from the presets: 32 groups, and the scale by the number of latent channels, of
    /// [`VaeConfig::flux`] for 16 and of [`VaeConfig::sd15`] for 4. Stable Diffusion 3 and XL have the same shapes as
    /// those: take their presets by name.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the file holds no autoencoder, lacks a tensor that gives a size, or has another
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
    /// Takes the sizes from the tensors of a file. The layers' numbers tell how many blocks each level has.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the file holds no AutoencoderTiny.
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

/// The blocks in each level of a half of an AutoencoderTiny, and the name of its last weight.
///
/// A level is a run of blocks that ends with a convolution; layers without weights (ReLU, upsampling) tell nothing.
fn tiny_levels(shapes: &Shapes<'_>, half: &str) -> Result<([i64; 4], String)> {
    /// Layers without weights that may follow each other, and one more.
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
