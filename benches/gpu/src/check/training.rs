//! Training: a step's loss and gradients compared with the CPU's, and the trainer's own loop.

use std::ops::ControlFlow;
use std::path::Path;

use kontext::{Conditioning, Device, Dit, DitConfig, Kind, Tensor, Tokens, Weights};
use kontext_core::noise;
use kontext_dit::RunInput;
use kontext_sampler::Grid;
use kontext_sampler::ids::{Origin, grid_ids};
use kontext_train::{Activations, FlowObjective, Params, Recipe, TrainEvent, Trainer, add_noise, backward};
use serde_json::json;

use super::distance::{Bounds, Trace};
use super::world::{World, image};
use crate::adapters;
use crate::device::computed_in;
use crate::row::Outcome;
use crate::suite::Case;

/// Bound of the relative distance of loss and gradient in f32: sums over tokens in another order, forward and
/// backward.
const F32: f64 = 1e-3;
/// The same bound with the base in bf16: forward and backward round at each layer.
const BF16: f64 = 5e-2;
const RANK: i64 = 4;
const SEED: u64 = 31;
/// Noise levels of a batch of two.
const SIGMAS: [f64; 2] = [0.3, 0.8];
const TEXT: i64 = 32;
const GRID: Grid = Grid { rows: 8, cols: 8 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Full,
    Lora,
}

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let step = |name: &str, method, activations, kind| {
        Case::new(format!("training/{name}"), move || {
            one_step(world, method, activations, kind)
        })
    };
    vec![
        step("full, kept", Method::Full, Activations::Kept, Kind::Float),
        step("full, recomputed", Method::Full, Activations::Recomputed, Kind::Float),
        step("lora, kept", Method::Lora, Activations::Kept, Kind::Float),
        step("lora, recomputed", Method::Lora, Activations::Recomputed, Kind::Float),
        step(
            "full on bf16, recomputed",
            Method::Full,
            Activations::Recomputed,
            Kind::BFloat16,
        ),
        step(
            "lora on bf16, recomputed",
            Method::Lora,
            Activations::Recomputed,
            Kind::BFloat16,
        ),
        Case::new("training/the trainer's loop", move || whole_runs(world)),
    ]
}

fn config() -> DitConfig {
    DitConfig {
        heads: 2,
        double_blocks: 2,
        single_blocks: 2,
        mlp_width: 512,
        context_dim: 48,
        pooled_dim: 40,
        head_dim: 64,
        axes_dim: [16, 24, 24],
        ..DitConfig::kontext_dev()
    }
}

fn one_step(world: &World, method: Method, activations: Activations, kind: Kind) -> anyhow::Result<Outcome> {
    let (loss, gradient) = step(world.device, method, activations, kind)?;
    // The CPU computes in f32, also with bf16 weights.
    let (expected_loss, expected) = step(Device::Cpu, method, activations, kind)?;
    let bound = if kind == Kind::Float { F32 } else { BF16 };
    let (mut got, mut wanted, mut outcome) = (Trace::empty(), Trace::empty(), Outcome::default());
    got.add("gradient", &gradient)?;
    wanted.add("gradient", &expected)?;
    got.compare(
        &wanted,
        Bounds {
            stage: bound,
            ..Bounds::F32
        },
        &mut outcome,
    )?;
    outcome.value("loss", loss);
    outcome.at_most("loss, relative", (loss - expected_loss).abs() / expected_loss, bound);
    outcome.holds(expected.f_norm()?.f_double_value(&[])? > 1e-3, || {
        "the gradient is zero".to_owned()
    });
    Ok(outcome)
}

/// Returns the loss and the flattened gradient of a step.
fn step(device: Device, method: Method, activations: Activations, kind: Kind) -> anyhow::Result<(f64, Tensor)> {
    let config = config();
    let compute = computed_in(device, kind);
    let draw = |shape: &[i64], seed| -> kontext::Result<Tensor> {
        Ok(noise::randn(shape, seed, Kind::Float, device)?.f_to_kind(compute)?)
    };
    let blank = Weights::blank();
    Dit::new(&blank, &config, |_| ())?;
    let made = Weights::synthetic(SEED);
    let tensors = blank
        .shapes()
        .into_iter()
        .map(|(name, shape)| Ok((name.clone(), made.tensor(&name, &shape)?)));
    let tensors = tensors.collect::<kontext::Result<Vec<_>>>()?;
    let (dit, params) = match method {
        Method::Full => {
            let params = Params::new(&tensors, device)?;
            (Dit::new(&params.weights().device(device), &config, |_| ())?, params)
        }
        Method::Lora => {
            let dit = Dit::new(
                &Weights::from_tensors(tensors).kind(kind).device(device),
                &config,
                |_| (),
            )?;
            let params = adapters::set(&dit, device, RANK, |_| true)?;
            (dit, params)
        }
    };
    let channels = config.in_channels;
    let conditioning = Conditioning {
        prompt_embeds: draw(&[2, TEXT, config.context_dim], 1)?,
        pooled: draw(&[2, config.pooled_dim], 2)?,
    };
    let ids = |t| grid_ids(GRID, Origin { t, y: 0, x: 0 });
    let context = Tokens::new(draw(&[2, GRID.tokens(), channels], 3)?, ids(1)?)?;
    let run = dit.prepare_items(&RunInput {
        conditioning: &conditioning,
        target_ids: &ids(0)?,
        context: Some(&context),
        times: &SIGMAS.map(|sigma| (1000.0 * sigma) as f32),
        guidance: Some(1000.0),
    })?;
    let (image, noise) = (
        draw(&[2, GRID.tokens(), channels], 4)?,
        draw(&[2, GRID.tokens(), channels], 5)?,
    );
    let noisy = add_noise(&image, &noise, &SIGMAS)?;
    let objective = FlowObjective::default();
    let loss = backward(&dit, &run, &noisy, activations, 1.0, |velocity| {
        objective.loss(velocity, &noise, &image, &SIGMAS)
    })?;
    Ok((loss, params.gradient()?.f_to_device(Device::Cpu)?))
}

/// Trains two steps with each method, with activation checkpointing, on four synthetic pairs: the losses must
/// be close to the CPU's.
fn whole_runs(world: &World) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    std::fs::create_dir(&data)?;
    let mut lines = String::new();
    for item in 0..4_u32 {
        image(64 + item, 64).save(data.join(format!("{item}-source.png")))?;
        image(64, 64 + item).save(data.join(format!("{item}-target.png")))?;
        let line = json!({
            "source": format!("{item}-source.png"), "target": format!("{item}-target.png"),
            "instruction": "make it winter", "category": "season", "split": "train",
        });
        lines.push_str(&format!("{line}\n"));
    }
    std::fs::write(data.join("metadata.jsonl"), lines)?;
    let mut outcome = Outcome::default();
    for (name, method) in [
        ("full", json!({"kind": "full"})),
        ("lora", json!({"kind": "lora", "rank": RANK})),
    ] {
        let losses = |device: Device, out: &str| train(world, &data, &folder.path().join(out), &method, device);
        let (got, expected) = (
            losses(world.device, &format!("{name}-here"))?,
            losses(Device::Cpu, &format!("{name}-cpu"))?,
        );
        outcome.value(format!("losses, {name}"), format!("{got:?}, {expected:?} on the CPU"));
        outcome.holds(got.len() == expected.len() && !got.is_empty(), || {
            format!("{name}: {} steps", got.len())
        });
        let worst = got
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs() / b)
            .fold(0.0, f64::max);
        outcome.at_most(format!("losses, {name}, relative"), worst, BF16);
    }
    Ok(outcome)
}

fn train(
    world: &World,
    data: &Path,
    out: &Path,
    method: &serde_json::Value,
    device: Device,
) -> anyhow::Result<Vec<f64>> {
    let device = match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    };
    let recipe: Recipe = serde_json::from_value(json!({
        "model": world.model(), "out": out, "steps": 2, "device": device, "method": method, "recompute": true,
        "data": {"folder": data, "batch": 2, "sizes": [[64, 64]]}, "rate": {"peak": 1e-3, "warmup": 0},
        "every": {"save": 0, "validate": 0, "sample": 0},
    }))?;
    let mut losses = Vec::new();
    Trainer::open(recipe, |_| ControlFlow::Continue(()))?.run(|event| {
        if let TrainEvent::Step(report) = event {
            losses.push(report.loss);
        }
        ControlFlow::Continue(())
    })?;
    Ok(losses)
}
