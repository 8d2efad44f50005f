//! A small model's inputs, and a step of it.
#![allow(clippy::unwrap_used, dead_code)] // In helper functions of tests, some of which use not all of them.

use kontext_core::{Conditioning, Device, Kind, Tensor, Tokens, noise};
use kontext_dit::{Dit, DitConfig, Run, RunInput};

pub(crate) const TEXT: i64 = 5;
pub(crate) const TARGET: i64 = 7;
const CONTEXT: i64 = 6;

pub(crate) fn config(double_blocks: i64, single_blocks: i64) -> DitConfig {
    DitConfig {
        in_channels: 8,
        out_channels: 8,
        heads: 2,
        head_dim: 32,
        axes_dim: [4, 14, 14],
        mlp_width: 256,
        double_blocks,
        single_blocks,
        context_dim: 24,
        pooled_dim: 20,
        guidance_embed: true,
    }
}

pub(crate) fn draw(shape: &[i64], seed: u64) -> Tensor {
    // Rounded, so that both dtypes start from the same values.
    let x = noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
    x.to_kind(Kind::BFloat16).to_kind(Kind::Float)
}

/// Batch of the prompts, batch of the target, and references.
pub(crate) type Case = (i64, i64, bool);

pub(crate) fn prepare(dit: &Dit, case: Case, kind: Kind) -> Run {
    prepare_times(dit, case, kind, &[900.0, 400.0])
}

pub(crate) fn prepare_times(dit: &Dit, (prompts, _, reference): Case, kind: Kind, times: &[f32]) -> Run {
    let ids = |tokens: i64, t: f64| {
        let at = Tensor::arange(tokens, (Kind::Float, Device::Cpu));
        Tensor::stack(&[at.full_like(t), at.shallow_clone(), at * 0.0 + 3.0], 1)
    };
    let context = Tokens::new(draw(&[1, CONTEXT, 8], 5).to_kind(kind), ids(CONTEXT, 1.0)).unwrap();
    let conditioning = Conditioning {
        prompt_embeds: draw(&[prompts, TEXT, 24], 1).to_kind(kind),
        pooled: draw(&[prompts, 20], 2).to_kind(kind),
    };
    let input = RunInput {
        conditioning: &conditioning,
        target_ids: &ids(TARGET, 0.0),
        context: reference.then_some(&context),
        times,
        guidance: Some(2500.0),
    };
    dit.prepare(&input).unwrap()
}

pub(crate) fn target((_, batch, _): Case, kind: Kind) -> Tensor {
    draw(&[batch, TARGET, 8], 4).to_kind(kind)
}

pub(crate) fn velocity(dit: &Dit, case: Case, kind: Kind) -> Tensor {
    dit.forward(&prepare(dit, case, kind), 1, &target(case, kind)).unwrap()
}
