//! Loss and gradients of a training step against diffusers' (f32, random weights, odd head width), of all
//! weights and of a LoRA's, with kept and with recomputed activations.
//!
//! Fixture: `tests/reference/parts/gradients.py`. Bounds are relative: 1e-4 of a gradient's norm. The
//! measured distance is 1e-6; a wrong weighting, time or mask moves gradients by 1e-2 and more.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::collections::BTreeMap;

use kontext_core::{Conditioning, Device, Kind, Tensor, Tokens};
use kontext_dit::{Dit, DitConfig, RunInput, linear_parts, names};
use kontext_formats::TensorMap;
use kontext_nn::{Adapters, DoraNorm, LinearAdapter, Weights};
use kontext_train::{Activations, FlowObjective, Params, Weighting, add_noise, backward};
use serde_json::Value;

const BOUND: f64 = 1e-4;
const BOTH: [Activations; 2] = [Activations::Kept, Activations::Recomputed];

fn fixture() -> Weights {
    Weights::open(kontext_fixtures::reference("gradients.safetensors")).unwrap()
}

fn metadata(name: &str) -> Value {
    serde_json::from_str(&fixture().store().metadata()[name]).unwrap()
}

fn seed() -> u64 {
    metadata("seed").as_u64().unwrap()
}

fn config(case: &str) -> DitConfig {
    let all = metadata("configs");
    let number = |name: &str| all[case][name].as_i64().unwrap();
    let axes: Vec<i64> = all[case]["axes_dims_rope"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_i64().unwrap())
        .collect();
    DitConfig {
        in_channels: number("in_channels"),
        out_channels: number("in_channels"),
        heads: number("num_attention_heads"),
        head_dim: number("attention_head_dim"),
        axes_dim: axes.try_into().unwrap(),
        mlp_width: 4 * number("num_attention_heads") * number("attention_head_dim"),
        double_blocks: number("num_layers"),
        single_blocks: number("num_single_layers"),
        context_dim: number("joint_attention_dim"),
        pooled_dim: number("pooled_projection_dim"),
        guidance_embed: all[case]["guidance_embeds"].as_bool().unwrap(),
    }
}

/// Returns the shapes of the model's parameters by diffusers' names, in order.
fn shapes(case: &str) -> BTreeMap<String, Vec<i64>> {
    serde_json::from_value(metadata("shapes")[case].clone()).unwrap()
}

/// Returns the reference model's weights under our names.
fn weights(case: &str) -> Weights {
    let made = Weights::synthetic(seed());
    let tensors = shapes(case)
        .into_iter()
        .map(|(n, s)| (n.clone(), made.tensor(&n, &s).unwrap()));
    Weights::from_tensors(tensors).named(names::diffusers)
}

/// Runs a training step and returns its loss; gradients remain on the trained tensors.
fn step(dit: &Dit, reference: bool, weighting: Weighting, activations: Activations) -> f64 {
    let fixture = fixture();
    let raw = |name: &str| fixture.raw(&format!("input.{name}")).unwrap();
    let list = |name: &str| -> Vec<f32> { Vec::try_from(raw(name)).unwrap() };
    let conditioning = Conditioning {
        prompt_embeds: raw("prompt_embeds"),
        pooled: raw("pooled"),
    };
    let context = Tokens::new(raw("reference"), raw("reference_ids")).unwrap();
    let guidance = metadata("guidance").as_f64().unwrap() as f32;
    let run = dit
        .prepare_items(&RunInput {
            conditioning: &conditioning,
            target_ids: &raw("target_ids"),
            context: reference.then_some(&context),
            times: &list("timesteps"),
            guidance: dit.config().guidance_embed.then_some(1000.0 * guidance),
        })
        .unwrap();
    let sigmas: Vec<f64> = list("sigmas").into_iter().map(f64::from).collect();
    let (image, noise) = (raw("picture"), raw("noise"));
    let noisy = add_noise(&image, &noise, &sigmas).unwrap();
    let objective = FlowObjective {
        weighting,
        ..FlowObjective::default()
    };
    backward(dit, &run, &noisy, activations, 1.0, |v| {
        objective.loss(v, &noise, &image, &sigmas)
    })
    .unwrap()
}

/// Returns our gradients under diffusers' names.
fn by_diffusers(params: &Params, shapes: &BTreeMap<String, Vec<i64>>) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
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

fn close(what: &str, got: f64, expected: f64, size: f64) {
    let distance = (got - expected).abs() / size;
    assert!(
        distance < BOUND,
        "{what}: {got}, expected {expected}: {distance:.2e} of {size}"
    );
}

fn all_weights(case: &str, reference: bool) {
    let (config, shapes, fixture, made) = (config(case), shapes(case), fixture(), Weights::synthetic(seed()));
    let blank = Weights::blank();
    Dit::new(&blank, &config, |_| ()).unwrap();
    let weights = weights(case);
    let tensors: Vec<_> = blank
        .shapes()
        .into_iter()
        .map(|(n, s)| (n.clone(), weights.tensor(&n, &s).unwrap()))
        .collect();
    weights.finish().unwrap();
    for (scheme, weighting) in [
        ("none", Weighting::None),
        ("sigma_sqrt", Weighting::SigmaSqrt),
        ("cosmap", Weighting::Cosmap),
    ] {
        for activations in BOTH {
            let params = Params::new(&tensors, Device::Cpu).unwrap();
            let loss = step(
                &Dit::new(&params.weights(), &config, |_| ()).unwrap(),
                reference,
                weighting,
                activations,
            );
            let expected = fixture.raw(&format!("{case}.loss.{scheme}")).unwrap().double_value(&[]);
            close(&format!("{case} {scheme} loss"), loss, expected, expected);
            let gradients = by_diffusers(&params, &shapes);
            assert!(gradients.keys().eq(shapes.keys()), "every parameter has a gradient");
            let probes = fixture.raw(&format!("{case}.probes.{scheme}")).unwrap();
            for (row, (name, gradient)) in gradients.iter().enumerate() {
                let expected: Vec<f64> = Vec::try_from(probes.get(row as i64).to_kind(Kind::Double)).unwrap();
                let gradient = gradient.to_kind(Kind::Double);
                let what = format!("{case} {scheme} {activations:?} {name}");
                close(&what, gradient.norm().double_value(&[]), expected[0], expected[0]);
                for (index, expected_product) in expected[1..].iter().enumerate() {
                    let direction = made
                        .tensor(&format!("{name}.direction.{index}"), &shapes[name])
                        .unwrap();
                    let direction = direction.to_kind(Kind::Double);
                    let product = (&gradient * &direction).sum(Kind::Double).double_value(&[]);
                    // Expected magnitude of the product with a random direction.
                    let size = expected[0] * direction.norm().double_value(&[]) / (gradient.numel() as f64).sqrt();
                    close(&what, product, *expected_product, size);
                }
                let whole = format!("{case}.gradient.{name}");
                if scheme == "none" && fixture.contains(&whole) {
                    let whole = fixture.raw(&whole).unwrap().to_kind(Kind::Double);
                    close(&what, (&gradient - &whole).norm().double_value(&[]), 0.0, expected[0]);
                }
            }
        }
    }
}

#[test]
fn gradients_of_all_weights_are_those_of_diffusers() {
    all_weights("narrow", true);
}

#[test]
fn gradients_of_another_head_width_are_those_of_diffusers() {
    all_weights("wide", true);
}

#[test]
fn gradients_without_guidance_and_reference_are_those_of_diffusers() {
    all_weights("plain", false);
}

#[test]
fn gradients_of_a_lora_are_those_of_peft() {
    adapters("lora");
}

#[test]
fn gradients_of_a_dora_are_those_of_peft() {
    adapters("dora");
}

fn adapters(case: &str) {
    let (config, fixture, lora) = (config("narrow"), fixture(), metadata("lora"));
    let (rank, alpha) = (lora["r"].as_i64().unwrap(), lora["lora_alpha"].as_f64().unwrap());
    let expected: BTreeMap<String, Tensor> = fixture
        .names()
        .into_iter()
        .filter_map(|name| {
            Some((
                name.strip_prefix(&format!("{case}.gradient."))?.to_owned(),
                fixture.raw(&name).unwrap(),
            ))
        })
        .collect();
    assert!(expected.len() > 20);
    let made = Weights::synthetic(seed());
    let tensor = |name: &str, size: &[i64]| match size {
        [_] => made.tensor(&format!("{name}.scale"), size),
        _ => made.tensor(name, size),
    };
    let tensors: Vec<_> = expected
        .iter()
        .map(|(name, gradient)| (name.clone(), tensor(name, &gradient.size()).unwrap()))
        .collect();
    for activations in BOTH {
        let params = Params::new(&tensors, Device::Cpu).unwrap();
        let mut adapters = Adapters::new();
        for part in linear_parts(&config).unwrap() {
            let factor = |name: &str| {
                params
                    .get(&format!("{}.{name}", part.module))
                    .map(Tensor::shallow_clone)
            };
            if let (Some(down), Some(up)) = (factor("lora_A.weight"), factor("lora_B.weight")) {
                let mut change = LinearAdapter::low_rank(down, up, alpha / rank as f64, part.start).unwrap();
                if let Some(magnitude) = factor("lora_magnitude_vector") {
                    change = change.with_magnitude(&magnitude, DoraNorm::Peft).unwrap();
                }
                adapters.add(part.layer, change);
            }
        }
        let dit = Dit::new(&weights("narrow"), &config, |_| ()).unwrap();
        dit.slots().set(&adapters).unwrap();
        let loss = step(&dit, true, Weighting::None, activations);
        let expected_loss = fixture.raw(&format!("{case}.loss.none")).unwrap().double_value(&[]);
        close("loss", loss, expected_loss, expected_loss);
        for (name, gradient) in params.gradients().unwrap() {
            let size = expected[&name].norm().double_value(&[]);
            close(
                &name,
                (&gradient - &expected[&name]).norm().double_value(&[]),
                0.0,
                size,
            );
        }
    }
}
