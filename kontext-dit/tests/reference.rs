//! Tests of the transformer against diffusers' `FluxTransformer2DModel` in f32: random weights, odd head width.
//!
//! Fixture: `tests/reference/parts/dit.py`. Bounds are relative L2 distances. In f32 another order of
//! summation changes a result by about 1e-7 per block; 1e-5 allows for that but not for a wrong position,
//! norm or gate (the smallest such error measured changes it by 1e-3).
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use kontext_core::{Conditioning, Device, Kind, Tensor, Tokens, check};
use kontext_dit::{Dit, DitConfig, KeptKv, KeptTokens, Region, RunInput, names};
use kontext_formats::TensorMap;
use kontext_nn::Weights;

const BOUND: f64 = 1e-5;
const SEED: u64 = 31;

fn fixture() -> Weights {
    Weights::open(kontext_fixtures::reference("dit.safetensors")).unwrap()
}

/// Returns the configuration stated in the fixture's metadata.
fn config(guidance_embed: bool) -> DitConfig {
    DitConfig {
        in_channels: 64,
        out_channels: 64,
        heads: 3,
        head_dim: 18,
        axes_dim: [4, 6, 8],
        mlp_width: 4 * 54,
        double_blocks: 2,
        single_blocks: 3,
        context_dim: 24,
        pooled_dim: 20,
        guidance_embed,
    }
}

/// Creates the synthetic weights by diffusers' names, as the reference script does.
fn diffusers_weights(config: &DitConfig, seed: u64) -> Weights {
    let blank = Weights::blank();
    Dit::new(&blank, config, |_| ()).unwrap();
    let synthetic = Weights::synthetic(seed);
    let mut tensors = Vec::new();
    for (name, shape) in blank.shapes() {
        let recipe = names::diffusers(&name);
        let parts = match &recipe {
            TensorMap::Rows(rows) if rows.len() == 4 => {
                let width = config.width();
                vec![width, width, width, shape[0] - 3 * width]
            }
            TensorMap::Rows(rows) => vec![shape[0] / rows.len() as i64; rows.len()],
            _ => vec![shape[0]],
        };
        for (name, rows) in recipe.names().iter().zip(parts) {
            let shape = [&[rows], &shape[1..]].concat();
            tensors.push((name.clone(), synthetic.tensor(name, &shape).unwrap()));
        }
    }
    Weights::from_tensors(tensors)
}

/// Runs one case of the fixture through the transformer: one step for each of the batch's times.
fn run(case: &str, guided: bool, reference: bool) {
    let error = distance(case, guided, reference, Kind::Float);
    assert!(error < BOUND, "{case}: {error:e}");
}

/// Returns the largest distance of a case's items, computed in `kind`.
fn distance(case: &str, guided: bool, reference: bool, kind: Kind) -> f64 {
    let mut largest: f64 = 0.0;
    let (fixture, config) = (fixture(), config(guided));
    let raw = |name: &str| fixture.raw(&format!("{case}.{name}")).unwrap();
    let weights = diffusers_weights(&config, SEED);
    let dit = Dit::new(&weights.clone().named(names::diffusers), &config, |_| ()).unwrap();
    weights.finish().unwrap();

    const TARGET: i64 = 4 * 6;
    let (hidden, ids, expected) = (raw("hidden_states"), raw("img_ids"), raw("output"));
    let times: Vec<f32> = Vec::try_from(raw("timestep")).unwrap();
    for (item, time) in times.iter().enumerate() {
        let item = item as i64;
        let pick = |t: &Tensor| t.narrow(0, item, 1);
        let conditioning = Conditioning {
            prompt_embeds: pick(&raw("encoder_hidden_states")).to_kind(kind),
            pooled: pick(&raw("pooled_projections")),
        };
        let rest = ids.size()[0] - TARGET;
        let context =
            reference.then(|| Tokens::new(pick(&hidden).narrow(1, TARGET, rest), ids.narrow(0, TARGET, rest)).unwrap());
        let guidance = guided.then(|| raw("guidance").double_value(&[item]) as f32 * 1000.0);
        let run = dit.prepare(&RunInput {
            conditioning: &conditioning,
            target_ids: &ids.narrow(0, 0, TARGET),
            context: context.as_ref(),
            times: &[700.0, time * 1000.0],
            guidance,
        });
        let velocity = dit
            .forward(&run.unwrap(), 1, &pick(&hidden).narrow(1, 0, TARGET).to_kind(kind))
            .unwrap();
        assert_eq!(velocity.kind(), kind);
        largest = largest.max(check::relative_l2(&velocity, &pick(&expected).narrow(1, 0, TARGET)).unwrap());
    }
    largest
}

#[test]
fn an_edit_matches_diffusers_at_both_ends_of_the_schedule() {
    run("guided.t1", true, true);
    run("guided.t037", true, true);
}

/// In bf16 a value is rounded by 2^-9 at most, 1.1e-3 in the mean square. A block rounds some ten values in a row
/// (weights, norm, projection, rotation, attention, projection, gate, sum), and there are five blocks: 1.1e-3 times the
/// root of 50 is 8e-3. Twice that is the bound; a wrong position or gate is as large, which the tests in f32 find.
#[test]
fn an_edit_in_bf16_is_within_its_roundings_of_diffusers_in_f32() {
    for (case, guided) in [("guided.t1", true), ("guided.t037", true), ("plain.t037", false)] {
        let error = distance(case, guided, true, Kind::BFloat16);
        assert!(error > 1e-4 && error < 1.6e-2, "{case}: {error:e}");
    }
}

/// Heads and tokens of a size for which a CPU with bf16 units has an attention of its own.
#[test]
fn wide_heads_in_bf16_are_within_its_roundings_of_f32() {
    let config = DitConfig {
        heads: 2,
        head_dim: 64,
        axes_dim: [16, 24, 24],
        mlp_width: 512,
        ..config(false)
    };
    let draw = |shape: &[i64], seed| kontext_core::noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
    let ids = Tensor::arange(100 * 3, (Kind::Float, Device::Cpu)).reshape([100, 3]);
    let dit = Dit::new(&Weights::synthetic(5), &config, |_| ()).unwrap();
    let velocity = |kind| {
        let conditioning = Conditioning {
            prompt_embeds: draw(&[1, 30, 24], 1).to_kind(kind),
            pooled: draw(&[1, 20], 2),
        };
        let input = RunInput {
            conditioning: &conditioning,
            target_ids: &ids,
            context: None,
            times: &[370.0],
            guidance: None,
        };
        let target = draw(&[1, 100, 64], 3).to_kind(kind);
        dit.forward(&dit.prepare(&input).unwrap(), 0, &target).unwrap()
    };
    let error = check::relative_l2(&velocity(Kind::BFloat16), &velocity(Kind::Float)).unwrap();
    assert!(error > 1e-4 && error < 1.6e-2, "{error:e}");
}

#[test]
fn a_generation_without_reference_matches_diffusers() {
    run("guided.generate", true, false);
}

#[test]
fn a_model_without_guidance_matches_diffusers() {
    run("plain.t037", false, true);
}

#[test]
fn items_of_a_batch_match_diffusers() {
    run("guided.batch", true, true);
    run("plain.batch", false, true);
}

#[test]
fn a_batch_of_two_prompts_equals_two_runs() {
    let fixture = fixture();
    let raw = |name: &str| fixture.raw(&format!("guided.batch.{name}")).unwrap();
    let config = config(true);
    let dit = Dit::new(&Weights::synthetic(1), &config, |_| ()).unwrap();
    let (hidden, ids) = (raw("hidden_states"), raw("img_ids"));
    let velocity = |from: i64, count: i64| {
        let pick = |t: Tensor| t.narrow(0, from, count);
        let conditioning = Conditioning {
            prompt_embeds: pick(raw("encoder_hidden_states")),
            pooled: pick(raw("pooled_projections")),
        };
        let input = RunInput {
            conditioning: &conditioning,
            target_ids: &ids,
            context: None,
            times: &[370.0],
            guidance: Some(2500.0),
        };
        dit.forward(&dit.prepare(&input).unwrap(), 0, &pick(hidden.shallow_clone()))
            .unwrap()
    };
    let apart = Tensor::cat(&[velocity(0, 1), velocity(1, 1)], 0);
    assert!(check::relative_l2(&velocity(0, 2), &apart).unwrap() < BOUND);
}

#[test]
fn wrong_input_is_named() {
    let dit = Dit::new(&Weights::synthetic(1), &config(true), |_| ()).unwrap();
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let conditioning = Conditioning {
        prompt_embeds: zeros(&[1, 5, 24]),
        pooled: zeros(&[1, 20]),
    };
    let ids = zeros(&[6, 3]);
    let input = |guidance| RunInput {
        conditioning: &conditioning,
        target_ids: &ids,
        context: None,
        times: &[1.0],
        guidance,
    };
    let error = dit.prepare(&input(None)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid guidance: expected a value, because this model embeds it, got none"
    );
    let run = dit.prepare(&input(Some(2500.0))).unwrap();
    let error = dit.forward(&run, 0, &zeros(&[1, 5, 64])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "target: expected shape [N, L, in_channels], got [1, 5, 64]"
    );
}

/// Runs three steps, of which the last two read the first one's keys and values; `rows` of the target, or all.
fn reuse(case: &str, rows: Option<&[i64]>) {
    const SIGMAS: [f32; 4] = [1.0, 0.7, 0.3, 0.0];
    const TARGET: i64 = 4 * 5;
    let fixture = Weights::open(kontext_fixtures::reference("kept.safetensors")).unwrap();
    let raw = |name: &str| fixture.raw(name).unwrap();
    let config = DitConfig {
        in_channels: 16,
        out_channels: 16,
        heads: 2,
        head_dim: 16,
        axes_dim: [4, 6, 6],
        mlp_width: 4 * 32,
        single_blocks: 2,
        ..config(true)
    };
    let weights = diffusers_weights(&config, 32).named(names::diffusers);
    let dit = Dit::new(&weights, &config, |_| ()).unwrap();
    let (hidden, ids) = (raw("hidden"), raw("ids"));
    let rest = ids.size()[0] - TARGET;
    let context = Tokens::new(hidden.narrow(1, TARGET, rest), ids.narrow(0, TARGET, rest)).unwrap();
    let conditioning = Conditioning {
        prompt_embeds: raw("text"),
        pooled: raw("pooled"),
    };
    let input = RunInput {
        conditioning: &conditioning,
        target_ids: &ids.narrow(0, 0, TARGET),
        context: Some(&context),
        times: &[1000.0, 700.0, 300.0],
        guidance: Some(2500.0),
    };
    let run = dit.prepare(&input).unwrap();
    let tokens = if rows.is_some() {
        KeptTokens::Image
    } else {
        KeptTokens::References
    };
    let mut kept = KeptKv::new(&dit, &run, 1, tokens).unwrap();
    let mut x = hidden.narrow(1, 0, TARGET);
    let mut v = dit.forward_keeping(&run, 0, &x, &mut kept).unwrap();
    for step in 0..3 {
        if let (1.., Some(rows)) = (step, rows) {
            let region = Region::new(&run, rows).unwrap();
            let given = region.gather(&x).unwrap();
            let computed = dit.forward_region(&run, step, &given, &region, &kept).unwrap();
            v = region.scatter(&v, &computed).unwrap();
        } else if step > 0 {
            v = dit.forward_reduced(&run, step, &x, &kept).unwrap();
        }
        let error = check::relative_l2(&v, &raw(&format!("{case}.v{step}"))).unwrap();
        assert!(error < 2e-6, "{case}, step {step}: {error:e}");
        x += v.shallow_clone() * f64::from(SIGMAS[step + 1] - SIGMAS[step]);
    }
    let error = check::relative_l2(&x, &raw(&format!("{case}.latents"))).unwrap();
    assert!(error < 1e-6, "{case}: {error:e}");
}

#[test]
fn steps_that_read_kept_keys_and_values_match_diffusers_with_an_attention_that_does() {
    reuse("references", None);
    reuse("region", Some(&[3, 4, 8, 9, 14]));
}
