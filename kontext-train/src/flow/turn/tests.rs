//! Losses and gradients of a step of student and critic against PyTorch's (f32, random weights).
//!
//! Fixture: `tests/reference/parts/adversarial.py`. Bounds are relative: 1e-4 of a gradient's norm.

use std::collections::BTreeMap;

use kontext_core::{Conditioning, Tokens};
use kontext_dit::{DitConfig, names};
use kontext_formats::TensorMap;
use kontext_nn::Weights;
use kontext_sampler::Grid;

use super::*;
use crate::dataset::{Batch, Bucket};
use crate::objective::{Pairing, add_noise};
use crate::optim::Params;

const BOUND: f64 = 1e-4;
/// Norm below which a gradient is zero.
const LEAST: f64 = 1e-3;
const GRID: Grid = Grid { rows: 4, cols: 3 };
const BLOCKS: usize = 4;
/// Seeds of teacher, student and heads.
const SEEDS: [u64; 3] = [47, 48, 49];

fn open(name: &str) -> Weights {
    Weights::open(kontext_fixtures::reference(name)).unwrap()
}

fn config() -> DitConfig {
    DitConfig {
        in_channels: 12,
        out_channels: 12,
        heads: 3,
        head_dim: 6,
        axes_dim: [2, 2, 2],
        mlp_width: 4 * 3 * 6,
        double_blocks: 2,
        single_blocks: 2,
        context_dim: 14,
        pooled_dim: 11,
        guidance_embed: true,
    }
}

/// Returns the shapes of the model's parameters by diffusers' names.
fn shapes() -> BTreeMap<String, Vec<i64>> {
    let all: serde_json::Value =
        serde_json::from_str(&open("gradients.safetensors").store().metadata()["shapes"]).unwrap();
    serde_json::from_value(all["narrow"].clone()).unwrap()
}

fn params(seed: u64) -> Params {
    let made = Weights::synthetic(seed);
    let tensors = shapes()
        .into_iter()
        .map(|(n, s)| (n.clone(), made.tensor(&n, &s).unwrap()));
    let weights = Weights::from_tensors(tensors).named(names::diffusers);
    let blank = Weights::blank();
    Dit::new(&blank, &config(), |_| ()).unwrap();
    let shapes = blank.shapes().into_iter();
    let tensors: Vec<_> = shapes
        .map(|(n, s)| (n.clone(), weights.tensor(&n, &s).unwrap()))
        .collect();
    Params::new(&tensors, Device::Cpu).unwrap()
}

fn noisy() -> NoisyBatch {
    let given = open("gradients.safetensors");
    let raw = |name: &str| given.raw(&format!("input.{name}")).unwrap();
    let sigmas: Vec<f32> = Vec::try_from(raw("sigmas")).unwrap();
    let sigmas: Vec<f64> = sigmas.into_iter().map(f64::from).collect();
    let (target, noise) = (raw("picture"), raw("noise"));
    NoisyBatch {
        noisy_target: add_noise(&target, &noise, &sigmas).unwrap(),
        batch: Batch {
            items: vec![0, 1, 2],
            bucket: Bucket {
                target: GRID,
                references: vec![Grid { rows: 2, cols: 3 }],
            },
            target,
            target_ids: raw("target_ids"),
            context: Some(Tokens::new(raw("reference"), raw("reference_ids")).unwrap()),
            conditioning: Conditioning {
                prompt_embeds: raw("prompt_embeds"),
                pooled: raw("pooled"),
            },
        },
        sigmas,
        noise,
        guidance: 1.0,
        negative: None,
    }
}

/// Returns the heads before the step: synthetic weights and singular vectors.
fn heads(objective: &AdversarialObjective) -> Heads {
    let sizes = HeadSizes {
        count: BLOCKS,
        channels: 18,
        pooled: 11,
    };
    let drawn = Heads::new(objective, sizes, 0, Device::Cpu).unwrap();
    assert_eq!(drawn.learner.params.count(), sizes.values(16));
    let made = Weights::synthetic(SEEDS[2]);
    let tensors: Vec<_> = drawn.learner.params.values().unwrap();
    let tensor = |(name, value): (String, Tensor)| (name.clone(), made.tensor(&name, &value.size()).unwrap());
    let tensors: Vec<_> = tensors.into_iter().map(tensor).collect();
    let mut heads = Heads::of(objective, &tensors, 0, Device::Cpu).unwrap();
    let mut vectors = Vec::new();
    for head in 0..BLOCKS {
        for (layer, rows, columns) in [("reduce", 16, 18), ("residual", 16, 16 * 9), ("out", 16, 16)] {
            for (side, length) in [("left", rows), ("right", columns)] {
                // A bias is a tenth of the draw; its direction is the same.
                let drawn = made.tensor(&format!("{head}.{layer}.{side}"), &[length]).unwrap();
                vectors.push(&drawn / drawn.norm());
            }
        }
    }
    heads.set_vectors(&Tensor::cat(&vectors, 0)).unwrap();
    heads
}

fn close(what: &str, got: f64, expected: f64, size: f64) {
    let distance = (got - expected).abs() / size;
    assert!(
        distance < BOUND,
        "{what}: {got}, expected {expected}: {distance:.2e} of {size}"
    );
}

/// Compares gradients, by their names in order, with rows of their norms and their products with random
/// directions.
fn compare(what: &str, gradients: &BTreeMap<String, Tensor>, probes: &Tensor) {
    let made = Weights::synthetic(SEEDS[0]);
    assert_eq!(probes.size()[0], gradients.len() as i64, "{what}");
    for (row, (name, gradient)) in gradients.iter().enumerate() {
        let expected: Vec<f64> = Vec::try_from(probes.get(row as i64).to_kind(Kind::Double)).unwrap();
        let gradient = gradient.to_kind(Kind::Double);
        let norm = gradient.norm().double_value(&[]);
        // A bias that moves both logits of a pair alike has no gradient but roundings.
        let size = expected[0].max(LEAST);
        close(&format!("{what} {name}"), norm, expected[0], size);
        for (index, product) in expected[1..].iter().enumerate() {
            let direction = made
                .tensor(&format!("{name}.direction.{index}"), &gradient.size())
                .unwrap();
            let direction = direction.to_kind(Kind::Double);
            let got = (&gradient * &direction).sum(Kind::Double).double_value(&[]);
            let size = size * direction.norm().double_value(&[]) / (gradient.numel() as f64).sqrt();
            close(&format!("{what} {name}, direction {index}"), got, *product, size);
        }
    }
}

/// Returns the student's gradients under diffusers' names.
fn by_diffusers(params: &Params) -> BTreeMap<String, Tensor> {
    let (mut all, shapes) = (BTreeMap::new(), shapes());
    for (name, gradient) in params.gradients().unwrap() {
        let recipe = names::diffusers(&name);
        let mut start = 0;
        for part in recipe.names() {
            let rows = shapes[part][0];
            let mut gradient = gradient.narrow(0, start, rows);
            if matches!(recipe, TensorMap::SwapHalves(_)) {
                let halves = gradient.chunk(2, 0);
                gradient = Tensor::cat(&[&halves[1], &halves[0]], 0);
            }
            all.insert(part.clone(), gradient);
            start += rows;
        }
    }
    all
}

fn step(pairing: Pairing, name: &str, activations: Activations) {
    let objective = AdversarialObjective {
        pairing,
        head_width: 16,
        adversarial_weight: 0.7,
        mse_weight: 0.3,
        r1: 0.05,
        r1_every: 4,
        guidance: 1.0,
        ..AdversarialObjective::default()
    };
    let fixture = open("adversarial.safetensors");
    let expected: Vec<f64> =
        Vec::try_from(fixture.raw(&format!("{name}.losses")).unwrap().to_kind(Kind::Double)).unwrap();
    let &[total, term, error, critic_loss, _, right] = expected.as_slice() else {
        unreachable!("six losses")
    };
    let noisy = noisy();
    let levels: Vec<f32> = Vec::try_from(fixture.raw("critic.levels").unwrap()).unwrap();
    let renoising = Renoising {
        levels: levels.into_iter().map(f64::from).collect(),
        noise: fixture.raw("critic.noise").unwrap(),
    };
    let (student, frozen) = (params(SEEDS[1]), params(SEEDS[0]));
    let dit = Dit::new(&student.weights(), &config(), |_| ()).unwrap();
    let frozen = Weights::from_tensors(frozen.values().unwrap());
    let teacher = Dit::new(&frozen, &config(), |_| ()).unwrap();
    let mut critic = Critic {
        heads: heads(&objective),
        blocks: (0..BLOCKS).collect(),
    };
    critic.heads.advance().unwrap();
    let seen = RefCell::new(Seen::default());
    let run = prepare(&dit, &noisy.batch, &noisy.sigmas, objective.guidance).unwrap();
    let loss = backward(&dit, &run, &noisy.noisy_target, activations, 1.0, |velocity| {
        let pair = |critic: &Critic, fake: &Tensor, real: &Tensor| {
            let teacher = Teacher {
                dit: &teacher,
                guidance: objective.guidance,
                blocks: &critic.blocks,
            };
            let judged = (&critic.heads, &objective);
            Pair::with_term(teacher, &noisy.batch, &renoising, [fake, real], judged, activations)
        };
        student_loss(&objective, &noisy, velocity, Some(&critic), pair, &seen)
    });
    let seen = seen.into_inner();
    close("loss", loss.unwrap(), total, total.abs());
    close("adversarial term", seen.term, term, term.abs());
    close("error", seen.mse, error, error);
    // The student's pass leaves the heads' gradients as they were.
    assert_eq!(
        critic.heads.learner.params.gradient().unwrap().norm().double_value(&[]),
        0.0
    );
    let before = student.gradient().unwrap();
    let found = seen
        .pair
        .unwrap()
        .critic_backward(&critic.heads, &objective, true, 1.0)
        .unwrap();
    close("critic's loss", found.loss, critic_loss, critic_loss);
    close("accuracy", found.accuracy, right, 1.0);
    assert!(student.gradient().unwrap().equal(&before));
    compare(
        &format!("{name} {activations:?}"),
        &by_diffusers(&student),
        &fixture.raw(&format!("{name}.student")).unwrap(),
    );
    let heads = critic.heads.learner.params.gradients().unwrap().into_iter().collect();
    compare(name, &heads, &fixture.raw(&format!("{name}.heads")).unwrap());
}

#[test]
fn gradients_of_relativistic_pairs_are_those_of_torch() {
    for activations in [Activations::Kept, Activations::Recomputed] {
        step(Pairing::Relativistic, "relativistic", activations);
    }
}

#[test]
fn gradients_of_the_hinge_loss_are_those_of_torch() {
    step(Pairing::Hinge, "hinge", Activations::Kept);
}
