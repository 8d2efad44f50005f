//! Residual block: norm, SiLU and convolution, twice.
//!
//! Source: huggingface/diffusers v0.38 models/resnet.py, ResnetBlock2D.

use kontext_core::{Result, Tensor};
use kontext_nn::{Conv2d, GroupNorm, Weights, ops};

/// Epsilon of every group norm of the autoencoders, added to the variance.
pub(crate) const NORM_EPS: f64 = 1e-6;

#[derive(Debug)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    pub(crate) fn new(w: &Weights, input: i64, output: i64, groups: i64) -> Result<Self> {
        let shortcut = || Conv2d::new(&w.at("conv_shortcut"), input, output, 1);
        Ok(Self {
            norm1: GroupNorm::new(&w.at("norm1"), input, groups, NORM_EPS)?,
            conv1: Conv2d::new(&w.at("conv1"), input, output, 3)?,
            norm2: GroupNorm::new(&w.at("norm2"), output, groups, NORM_EPS)?,
            conv2: Conv2d::new(&w.at("conv2"), output, output, 3)?,
            conv_shortcut: (input != output).then(shortcut).transpose()?,
        })
    }

    pub(crate) fn norms(&mut self) -> [&mut GroupNorm; 2] {
        [&mut self.norm1, &mut self.norm2]
    }

    /// Maps [B, input, H, W] to [B, output, H, W].
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.forward_silu(x)?)?; // [B, output, H, W]
        let mut h = self.conv2.forward(&self.norm2.forward_silu_in_place(h)?)?;
        Ok(match &self.conv_shortcut {
            Some(conv) => h.f_add_(&conv.forward(x)?)?,
            None => h.f_add_(x)?,
        })
    }
}

/// The residual blocks `resnets.0`, `resnets.1`, … of one level; the first changes the number of channels.
#[derive(Debug)]
pub(crate) struct Resnets(Vec<ResnetBlock>);

impl Resnets {
    pub(crate) fn new(w: &Weights, count: i64, input: i64, output: i64, groups: i64) -> Result<Self> {
        let block = |j: i64| {
            let input = if j == 0 { input } else { output };
            ResnetBlock::new(&w.at(format!("resnets.{j}")), input, output, groups)
        };
        (0..count).map(block).collect::<Result<_>>().map(Self)
    }

    pub(crate) fn norms(&mut self) -> impl Iterator<Item = &mut GroupNorm> {
        self.0.iter_mut().flat_map(ResnetBlock::norms)
    }

    /// Maps [B, input, H, W] to [B, output, H, W]. Takes `h` by value, so that each block's input is freed
    /// after it.
    pub(crate) fn forward(&self, mut h: Tensor) -> Result<Tensor> {
        for block in &self.0 {
            h = block.forward(&h)?;
        }
        Ok(h)
    }
}

/// Converts `x` [B, C, H, W] to the memory format in which the model's convolutions are fast: channels-last,
/// or contiguous in training.
pub(crate) fn memory_for(first: &Conv2d, x: &Tensor) -> Result<Tensor> {
    if first.is_trained() {
        Ok(x.f_contiguous()?)
    } else {
        ops::channels_last(x)
    }
}
