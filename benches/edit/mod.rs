//! A transformer of full width with few blocks and random weights, and the inputs of an edit.
// Each benchmark uses some of these fields.
#![allow(dead_code, unreachable_pub)]

use kontext_core::{Conditioning, Device, Kind, Result, Tensor, Tokens};
use kontext_dit::{Dit, DitConfig, Run, RunInput};
use kontext_nn::Weights;
use kontext_sampler::ids::{Origin, grid_ids};
use kontext_sampler::{Grid, Size};

/// Number of T5 tokens in FLUX.1 [dev].
pub const TEXT: i64 = 512;
/// Number of denoising steps, diffusers' default.
pub const STEPS: usize = 28;

/// A transformer and the inputs of an edit with one reference image.
pub struct Edit {
    pub config: DitConfig,
    pub dit: Dit,
    pub grid: Grid,
    /// The target's noise, f32.
    pub noise: Tensor,
    conditioning: Conditioning,
    target_ids: Tensor,
    context: Tokens,
}

impl Edit {
    /// Draws weights and inputs, for numbers of double-stream and single-stream blocks, the kind in which the model
    /// computes, and the width and height of target and reference in pixels.
    pub fn new((double_blocks, single_blocks): (i64, i64), kind: Kind, side: u32) -> Result<Self> {
        let config = DitConfig {
            double_blocks,
            single_blocks,
            ..DitConfig::kontext_dev()
        };
        let grid = Size::new(side, side).grid()?;
        let features = [1, grid.tokens(), config.in_channels];
        Ok(Self {
            dit: Dit::new(&random_weights(&config, kind)?, &config, |_| ())?,
            conditioning: Conditioning {
                // The model computes in its kind.
                prompt_embeds: random(&[1, TEXT, config.context_dim])?.f_to_kind(kind)?,
                pooled: random(&[1, config.pooled_dim])?,
            },
            target_ids: grid_ids(grid, Origin { t: 0, y: 0, x: 0 })?,
            context: Tokens::new(random(&features)?, grid_ids(grid, Origin { t: 1, y: 0, x: 0 })?)?,
            noise: random(&features)?,
            config,
            grid,
        })
    }

    /// Prepares a run at these times, with a guidance of 2.5.
    pub fn prepare(&self, times: &[f32]) -> Result<Run> {
        self.dit.prepare(&RunInput {
            conditioning: &self.conditioning,
            target_ids: &self.target_ids,
            context: Some(&self.context),
            times,
            guidance: Some(2500.0),
        })
    }
}

fn random(shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_randn(shape, (Kind::Float, Device::Cpu))?)
}

/// Draws weights of variance 1 / fan-in. At this size `Weights::synthetic` takes longer than a whole benchmark.
fn random_weights(config: &DitConfig, kind: Kind) -> Result<Weights> {
    let blank = Weights::blank();
    Dit::new(&blank, config, |_| ())?;
    let draw = |(name, shape): (String, Vec<i64>)| {
        let fan_in = shape.iter().skip(1).product::<i64>() as f64;
        let weight = random(&shape)?.f_mul_scalar_(fan_in.powf(-0.5))?;
        Ok((name, weight.f_to_kind(kind)?))
    };
    Ok(Weights::from_tensors(
        blank.shapes().into_iter().map(draw).collect::<Result<Vec<_>>>()?,
    ))
}
