//! Encoder: image to the moments of the latents.
//!
//! Source: huggingface/diffusers v0.38 models/autoencoders/vae.py, Encoder; models/unets/unet_2d_blocks.py,
//! DownEncoderBlock2D.

use kontext_core::{Result, Tensor};
use kontext_nn::{Conv2d, GroupNorm, Weights};

use crate::VaeConfig;
use crate::attention::MidBlock;
use crate::resnet::{NORM_EPS, Resnets, memory_for};

#[derive(Debug)]
pub(crate) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(crate) fn new(w: &Weights, config: &VaeConfig) -> Result<Self> {
        let (groups, [first, .., last]) = (config.norm_num_groups, config.block_out_channels);
        let mut input = first;
        let mut down_blocks = Vec::new();
        for (i, output) in config.block_out_channels.into_iter().enumerate() {
            let is_last = i + 1 == config.block_out_channels.len();
            let block = w.at(format!("down_blocks.{i}"));
            down_blocks.push(DownBlock::new(&block, input, output, config, !is_last)?);
            input = output;
        }
        Ok(Self {
            conv_in: Conv2d::new(&w.at("conv_in"), config.in_channels, first, 3)?,
            down_blocks,
            mid_block: MidBlock::new(&w.at("mid_block"), last, groups)?,
            conv_norm_out: GroupNorm::new(&w.at("conv_norm_out"), last, groups, NORM_EPS)?,
            conv_out: Conv2d::new(&w.at("conv_out"), last, 2 * config.latent_channels, 3)?,
        })
    }

    pub(crate) fn norms(&mut self) -> impl Iterator<Item = &mut GroupNorm> {
        let blocks = self.down_blocks.iter_mut().flat_map(|block| block.resnets.norms());
        blocks.chain(self.mid_block.norms()).chain([&mut self.conv_norm_out])
    }

    /// Maps [B, 3, H, W] to [B, 2 * latent channels, H/8, W/8].
    pub(crate) fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut h = self.conv_in.forward(&memory_for(&self.conv_in, image)?)?;
        for block in &self.down_blocks {
            h = block.forward(h)?;
        }
        let h = self.mid_block.forward(&h)?;
        self.conv_out.forward(&self.conv_norm_out.forward_silu_in_place(h)?)
    }
}

/// Residual blocks of one level, followed by downsampling by 2 except at the last level.
#[derive(Debug)]
struct DownBlock {
    resnets: Resnets,
    downsample: Option<Conv2d>,
}

impl DownBlock {
    fn new(w: &Weights, input: i64, output: i64, config: &VaeConfig, downsample: bool) -> Result<Self> {
        let conv = || Conv2d::new(&w.at("downsamplers.0.conv"), output, output, 3);
        Ok(Self {
            resnets: Resnets::new(w, config.layers_per_block, input, output, config.norm_num_groups)?,
            downsample: downsample.then(conv).transpose()?.map(|c| c.stride(2).padding(0)),
        })
    }

    /// Maps [B, input, H, W] to [B, output, H/2, W/2], or to [B, output, H, W] at the last level.
    fn forward(&self, h: Tensor) -> Result<Tensor> {
        let h = self.resnets.forward(h)?;
        match &self.downsample {
            // Pads one column on the right and one row at the bottom: windows start at even pixels.
            Some(conv) => conv.forward(&h.f_constant_pad_nd([0, 1, 0, 1])?),
            None => Ok(h),
        }
    }
}
