//! Decoder: latents to image.
//!
//! Source: huggingface/diffusers v0.38 models/autoencoders/vae.py, Decoder; models/unets/unet_2d_blocks.py,
//! UpDecoderBlock2D.

use kontext_core::{Result, Tensor};
use kontext_nn::{Conv2d, GroupNorm, Weights};

use crate::VaeConfig;
use crate::attention::MidBlock;
use crate::resnet::{NORM_EPS, Resnets, memory_for};
use crate::upsample::Upsample;

#[derive(Debug)]
pub(crate) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(crate) fn new(w: &Weights, config: &VaeConfig) -> Result<Self> {
        let (groups, [first, .., last]) = (config.norm_num_groups, config.block_out_channels);
        let mut input = last;
        let mut up_blocks = Vec::new();
        for (i, output) in config.block_out_channels.into_iter().rev().enumerate() {
            let is_last = i + 1 == config.block_out_channels.len();
            let block = w.at(format!("up_blocks.{i}"));
            up_blocks.push(UpBlock::new(&block, input, output, config, !is_last)?);
            input = output;
        }
        Ok(Self {
            conv_in: Conv2d::new(&w.at("conv_in"), config.latent_channels, last, 3)?,
            mid_block: MidBlock::new(&w.at("mid_block"), last, groups)?,
            up_blocks,
            conv_norm_out: GroupNorm::new(&w.at("conv_norm_out"), first, groups, NORM_EPS)?,
            conv_out: Conv2d::new(&w.at("conv_out"), first, config.out_channels, 3)?,
        })
    }

    pub(crate) fn norms(&mut self) -> impl Iterator<Item = &mut GroupNorm> {
        let blocks = self.up_blocks.iter_mut().flat_map(|block| block.resnets.norms());
        blocks.chain(self.mid_block.norms()).chain([&mut self.conv_norm_out])
    }

    /// Maps [B, latent channels, H/8, W/8] to [B, 3, H, W].
    pub(crate) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let h = self.conv_in.forward(&memory_for(&self.conv_in, latents)?)?;
        let mut h = self.mid_block.forward(&h)?;
        for block in &self.up_blocks {
            h = block.forward(h)?;
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu_in_place(h)?)
    }
}

/// Residual blocks of one level, one more than in the encoder, followed by upsampling by 2 except at the last
/// level.
#[derive(Debug)]
struct UpBlock {
    resnets: Resnets,
    upsample: Option<Upsample>,
}

impl UpBlock {
    fn new(w: &Weights, input: i64, output: i64, config: &VaeConfig, upsample: bool) -> Result<Self> {
        let conv = || Upsample::new(&w.at("upsamplers.0.conv"), output);
        Ok(Self {
            resnets: Resnets::new(w, config.layers_per_block + 1, input, output, config.norm_num_groups)?,
            upsample: upsample.then(conv).transpose()?,
        })
    }

    /// Maps [B, input, H, W] to [B, output, 2H, 2W], or to [B, output, H, W] at the last level.
    fn forward(&self, h: Tensor) -> Result<Tensor> {
        let h = self.resnets.forward(h)?;
        match &self.upsample {
            Some(upsample) => upsample.forward(&h),
            None => Ok(h),
        }
    }
}
