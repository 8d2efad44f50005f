//! Steps that read kept keys and values, against full steps in f32, and by kernels.
//!
//! Distances are relative L2. In f32 a sum in another order changes a result by about 1e-7 per block.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use kontext_core::{Conditioning, Device, Kind, Tensor, Tokens, check};
use kontext_dit::{Dit, DitConfig, KeptKv, KeptTokens, Region, Run, RunInput};
use kontext_nn::Weights;

use common::{Case, config, draw, prepare, target, velocity};

const BOUND: f64 = 1e-6;

/// A run of some shape, and latents of two steps.
struct Setup {
    dit: Dit,
    run: Run,
    latents: [Tensor; 2],
}

fn model(config: &DitConfig) -> Dit {
    Dit::new(&Weights::synthetic(3), config, |_| ()).unwrap()
}

/// Makes a run with `text` tokens, a target of 3x4 tokens, and references of these numbers of tokens.
fn setup((double, single): (i64, i64), [prompts, batch]: [i64; 2], text: i64, references: &[i64]) -> Setup {
    let dit = model(&config(double, single));
    let ids = |tokens: i64, t: i64| {
        let at = Tensor::arange(tokens, (Kind::Float, Device::Cpu));
        let rows = at.divide_scalar_mode(4, "floor");
        let columns = &at - &rows * 4.0;
        Tensor::stack(&[at.full_like(t as f64), rows, columns], 1)
    };
    let tokens: i64 = references.iter().sum();
    let places: Vec<_> = (1..).zip(references).map(|(t, &count)| ids(count, t)).collect();
    let context = Tokens::new(draw(&[1, tokens, 8], 5), Tensor::cat(&places, 0)).unwrap();
    let conditioning = Conditioning {
        prompt_embeds: draw(&[prompts, text, 24], 1),
        pooled: draw(&[prompts, 20], 2),
    };
    let input = RunInput {
        conditioning: &conditioning,
        target_ids: &ids(12, 0),
        context: Some(&context),
        times: &[900.0, 400.0],
        guidance: Some(2500.0),
    };
    let run = dit.prepare(&input).unwrap();
    let latents = [4, 6].map(|seed| draw(&[batch, 12, 8], seed));
    Setup { dit, run, latents }
}

/// Runs a full step that keeps keys and values.
fn full(setup: &Setup, tokens: KeptTokens) -> KeptKv {
    let Setup { dit, run, latents } = setup;
    let mut kept = KeptKv::new(dit, run, latents[0].size()[0], tokens).unwrap();
    let v = dit.forward_keeping(run, 0, &latents[0], &mut kept).unwrap();
    assert!(
        v.equal(&dit.forward(run, 0, &latents[0]).unwrap()),
        "keeping changes a step"
    );
    kept
}

fn distance(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.size(), expected.size());
    check::relative_l2(got, expected).unwrap()
}

const BLOCKS: [(i64, i64); 6] = [(2, 2), (1, 1), (2, 0), (1, 0), (0, 2), (0, 1)];

#[test]
fn a_step_without_the_references_is_the_full_one_at_its_latents() {
    for blocks in BLOCKS {
        for (batches, text, references) in [([1, 1], 5, &[12][..]), ([1, 2], 16, &[12, 6]), ([2, 2], 3, &[4, 12, 7])] {
            let setup = setup(blocks, batches, text, references);
            let Setup { dit, run, latents } = &setup;
            for tokens in [KeptTokens::References, KeptTokens::Image] {
                let kept = full(&setup, tokens);
                let got = dit.forward_reduced(run, 0, &latents[0], &kept).unwrap();
                let error = distance(&got, &dit.forward(run, 0, &latents[0]).unwrap());
                assert!(error < BOUND, "{blocks:?}, {batches:?}, {text}, {tokens:?}: {error:e}");
                // At another step the references' keys and values are those of before.
                let got = dit.forward_reduced(run, 1, &latents[1], &kept).unwrap();
                let change = distance(&got, &dit.forward(run, 1, &latents[1]).unwrap());
                // In the first block they depend on the step's modulation only.
                assert!((1e-4..0.5).contains(&change), "{blocks:?}, {tokens:?}: {change:e}");
            }
        }
    }
}

#[test]
fn a_step_of_all_rows_is_the_full_one_at_its_latents() {
    for blocks in BLOCKS {
        for batches in [[1, 1], [1, 2], [2, 2]] {
            let setup = setup(blocks, batches, 5, &[12, 6]);
            let Setup { dit, run, latents } = &setup;
            let kept = full(&setup, KeptTokens::Image);
            let region = Region::new(run, &(0..12).collect::<Vec<_>>()).unwrap();
            let [at, then] = [0, 1].map(|step: usize| {
                let rows = region.gather(&latents[step]).unwrap();
                dit.forward_region(run, step, &rows, &region, &kept).unwrap()
            });
            assert!(distance(&at, &dit.forward(run, 0, &latents[0]).unwrap()) < BOUND);
            let reduced = dit.forward_reduced(run, 1, &latents[1], &kept).unwrap();
            assert!(distance(&then, &reduced) < BOUND, "{blocks:?}");
        }
    }
}

#[test]
fn a_step_of_some_rows_is_the_full_one_in_them_and_moves_as_the_full_one_elsewhere() {
    for blocks in BLOCKS {
        let setup = setup(blocks, [1, 2], 5, &[12, 6]);
        let Setup { dit, run, latents } = &setup;
        let kept = full(&setup, KeptTokens::Image);
        let rows = [0, 3, 4, 10];
        let region = Region::new(run, &rows).unwrap();
        assert_eq!((region.len(), region.is_empty()), (4, false));
        let whole = dit.forward(run, 0, &latents[0]).unwrap();
        let given = region.gather(&latents[0]).unwrap();
        let got = dit.forward_region(run, 0, &given, &region, &kept).unwrap();
        let error = distance(&got, &region.gather(&whole).unwrap());
        assert!(error < BOUND, "{blocks:?}: {error:e}");
        let scattered = region.scatter(&latents[0], &got).unwrap();
        for row in 0..12 {
            let source = if rows.contains(&row) { &whole } else { &latents[0] };
            let [got, expected] = [&scattered, source].map(|x| x.narrow(1, row, 1));
            assert!(distance(&got, &expected) < 1e-5, "row {row}");
        }
    }
}

#[test]
fn a_later_full_step_renews_the_store() {
    let setup = setup((1, 2), [1, 1], 5, &[12]);
    let Setup { dit, run, latents } = &setup;
    let mut kept = full(&setup, KeptTokens::References);
    let _ = dit.forward_keeping(run, 1, &latents[1], &mut kept).unwrap();
    let got = dit.forward_reduced(run, 1, &latents[1], &kept).unwrap();
    assert!(distance(&got, &dit.forward(run, 1, &latents[1]).unwrap()) < BOUND);
}

#[test]
fn the_counted_bytes_are_those_of_the_store() {
    let config = config(2, 3);
    // Two blocks of text and target are not kept: [2 samples, 18 tokens, keys and values of 64] in f32.
    let block = 2 * 18 * 2 * 64 * 4;
    assert_eq!(KeptKv::bytes(&config, Kind::Float, 18, 2), 5 * block);
    assert_eq!(KeptKv::bytes(&config, Kind::BFloat16, 18, 2), 5 * block / 2);
    assert_eq!(KeptKv::bytes(&config, Kind::Float, u64::MAX, 2), u64::MAX);
}

#[test]
fn wrong_stores_and_rows_are_named() {
    let setup = setup((1, 1), [1, 1], 5, &[12]);
    let Setup { dit, run, latents } = &setup;
    let x = &latents[0];
    let refused = |error: kontext_core::Error, expected: &str| {
        let error = error.to_string();
        assert!(error.contains(expected), "{error}");
    };
    let without = prepare(dit, (1, 1, false), Kind::Float);
    let error = KeptKv::new(dit, &without, 1, KeptTokens::References).unwrap_err();
    refused(
        error,
        "expected a run with reference images, whose tokens it spares, got none",
    );
    let empty = KeptKv::new(dit, run, 1, KeptTokens::References).unwrap();
    let error = dit.forward_reduced(run, 0, x, &empty).unwrap_err();
    refused(
        error,
        "expected those of a full step of the run, computed before, got none",
    );
    let kept = full(&setup, KeptTokens::References);
    let error = dit
        .forward_reduced(run, 0, &Tensor::cat(&[x, x], 0), &kept)
        .unwrap_err();
    refused(
        error,
        "expected those of 12 tokens from token 17 on, of 2 samples, as the run has, got 12 tokens from token 17 on, of 1",
    );
    let region = Region::new(run, &[2, 5]).unwrap();
    let rows = region.gather(x).unwrap();
    let error = dit.forward_region(run, 0, &rows, &region, &kept).unwrap_err();
    refused(
        error,
        "expected those of target and references, for a step of some rows",
    );
    let kept = full(&setup, KeptTokens::Image);
    let error = dit.forward_region(run, 0, x, &region, &kept).unwrap_err();
    refused(error, "target: expected shape [N, M, in_channels], got [1, 12, 8]");
    let other = prepare(dit, (1, 1, true), Kind::Float);
    let error = dit.forward_region(&other, 0, &rows, &region, &kept).unwrap_err();
    refused(
        error,
        "region: expected one of 5, 7 and 6 tokens of text, target and references, got 5, 12 and 12",
    );
    let more = self::setup((1, 1), [1, 1], 5, &[12, 6]);
    let kept = full(&more, KeptTokens::Image);
    let error = more
        .dit
        .forward_region(&more.run, 0, &rows, &region, &kept)
        .unwrap_err();
    refused(error, "expected one of 5, 12 and 18 tokens");
    for (rows, got) in [
        (&[][..], "got none"),
        (&[3, 2], "got 2 from 3 to 2"),
        (&[2, 2], "got 2 from 2 to 2"),
        (&[-1, 2], "got 2 from -1 to 2"),
        (&[2, 12], "expected rising numbers from 0 to 11, got 2 from 2 to 12"),
    ] {
        refused(Region::new(run, rows).unwrap_err(), got);
    }
}

/// Steps in bf16 after one another: distances of the reduced one and of the one of some rows to those in f32.
fn narrow(dit: &Dit, case: Case, kind: Kind) -> [Tensor; 2] {
    let run = prepare(dit, case, kind);
    let x = target(case, kind);
    let mut kept = KeptKv::new(dit, &run, x.size()[0], KeptTokens::Image).unwrap();
    let _ = dit.forward_keeping(&run, 0, &x, &mut kept).unwrap();
    let region = Region::new(&run, &[1, 2, 6]).unwrap();
    let rows = region.gather(&x).unwrap();
    [
        dit.forward_reduced(&run, 1, &x, &kept).unwrap(),
        dit.forward_region(&run, 1, &rows, &region, &kept).unwrap(),
    ]
}

#[test]
fn in_bf16_reduced_steps_are_within_its_roundings() {
    for case in [(1, 1, true), (1, 2, true), (2, 2, true)] {
        let dit = Dit::new(&Weights::synthetic(3).kind(Kind::BFloat16), &config(2, 2), |_| ()).unwrap();
        let full = check::relative_l2(
            &velocity(&dit, case, Kind::BFloat16).to_kind(Kind::Float),
            &velocity(&dit, case, Kind::Float),
        );
        let [exact, rounded] = [Kind::Float, Kind::BFloat16].map(|kind| narrow(&dit, case, kind));
        for (got, expected) in rounded.iter().zip(&exact) {
            let error = distance(&got.to_kind(Kind::Float), expected);
            assert!(error < 1.5 * full.as_ref().unwrap(), "{case:?}: {error:e}, {full:?}");
        }
    }
}

#[cfg(target_os = "linux")] // The emulator's.
mod by_kernels {
    use std::sync::Arc;

    use kontext_emulator::Emulator;
    use kontext_kernels::{KernelShape, Kernels};

    use super::*;

    #[test]
    fn reduced_steps_by_kernels_are_as_close_to_f32_as_without() {
        for (double, single) in [(2, 2), (1, 0), (0, 1)] {
            let config = config(double, single);
            let mut dit = Dit::new(&Weights::synthetic(3).kind(Kind::BFloat16), &config, |_| ()).unwrap();
            let mut sums = [0.0; 2];
            for case in [(1, 1, true), (1, 2, true), (2, 2, true)] {
                let [exact, plain] = [Kind::Float, Kind::BFloat16].map(|kind| narrow(&dit, case, kind));
                let emulator = Arc::new(Emulator::default());
                let shape = KernelShape::new(config.width(), config.head_dim, config.mlp_width).unwrap();
                dit.set_kernels(Some(Kernels::launched_by(emulator.clone(), &shape)));
                let fused = narrow(&dit, case, Kind::BFloat16);
                assert!(!emulator.take().is_empty());
                dit.set_kernels(None);
                for ((fused, plain), exact) in fused.iter().zip(&plain).zip(&exact) {
                    let [fused, plain] = [fused, plain].map(|v| distance(&v.to_kind(Kind::Float), exact));
                    // Of a few hundred values, rounding errors differ by chance; bf16 rounds by up to 2^-9.
                    assert!(fused < 1.3 * plain && plain < 0.02, "{case:?}: {fused:e}, {plain:e}");
                    sums = [sums[0] + fused, sums[1] + plain];
                }
            }
            assert!(sums[0] <= 1.05 * sums[1], "{double} + {single} blocks: {sums:?}");
        }
    }
}
