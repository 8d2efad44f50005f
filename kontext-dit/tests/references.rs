//! Runs that reuse references and unedited tokens, against the steps they consist of.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::{config, draw};
use kontext_core::{Conditioning, Device, Kind, Tensor, Tokens};
use kontext_dit::{
    CachedRun, Dit, FirstReference, KeptKv, KeptTokens, ReferenceReuse, Region, Run, RunInput, StepWork,
};
use kontext_nn::Weights;

const TIMES: [f32; 8] = [990.0, 900.0, 800.0, 690.0, 570.0, 440.0, 300.0, 150.0];
/// Rows and columns of the target and of the reference.
const GRID: [i64; 2] = [4, 5];
const TOKENS: i64 = GRID[0] * GRID[1];

fn setup() -> (Dit, Run) {
    let dit = Dit::new(&Weights::synthetic(3), &config(1, 2), |_| ()).unwrap();
    let ids = |t: f64| {
        let at = Tensor::arange(TOKENS, (Kind::Float, Device::Cpu));
        let rows = at.divide_scalar_mode(GRID[1], "floor");
        let columns = &at - &rows * GRID[1] as f64;
        Tensor::stack(&[at.full_like(t), rows, columns], 1)
    };
    let context = Tokens::new(draw(&[1, TOKENS, 8], 5), ids(1.0)).unwrap();
    let conditioning = Conditioning {
        prompt_embeds: draw(&[1, 5, 24], 1),
        pooled: draw(&[1, 20], 2),
    };
    let input = RunInput {
        conditioning: &conditioning,
        target_ids: &ids(0.0),
        context: Some(&context),
        times: &TIMES,
        guidance: Some(2500.0),
    };
    let run = dit.prepare(&input).unwrap();
    (dit, run)
}

/// Latents of a step.
fn latents(batch: i64, step: usize) -> Tensor {
    draw(&[batch, TOKENS, 8], 4) + draw(&[batch, TOKENS, 8], 40) * (0.05 * step as f64)
}

/// Starts a run with a step cache and a reuse.
fn start(dit: &Dit, run: &Run, cache: &str, reuse: &str, first: Option<Tensor>) -> CachedRun {
    let sigmas: Vec<f32> = TIMES.iter().map(|time| time / 1000.0).chain([0.0]).collect();
    let reuse: ReferenceReuse = reuse.parse().unwrap();
    let first = first.map(|latents| FirstReference {
        latents,
        grid: GRID,
        target: GRID,
    });
    let state = dit.step_cache(&cache.parse().unwrap(), run).unwrap();
    state.reuse_references(&reuse, run, &sigmas, first).unwrap()
}

#[test]
fn edited_tokens_are_computed_and_the_others_keep_their_velocity() {
    let (dit, run) = setup();
    for batch in [1, 2] {
        let x = |step| latents(batch, step);
        let mut kept = KeptKv::new(&dit, &run, batch, KeptTokens::Image).unwrap();
        let mut v = dit.forward_keeping(&run, 0, &x(0), &mut kept).unwrap();
        // The reference is the estimate but for a cross of tokens, and a single one, which does not count.
        let reference = x(0) - &v * f64::from(TIMES[0] / 1000.0);
        for (row, column) in [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (3, 4)] {
            let _ = reference.narrow(1, GRID[1] * row + column, 1).neg_();
        }
        let rows = [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18];
        let region = Region::new(&run, &rows).unwrap();
        let mut state = start(&dit, &run, "off", "region:warmup=4,refresh=,error=0", Some(reference));
        for step in 0..TIMES.len() {
            let got = dit.forward_cached(&run, step, &x(step), &mut state).unwrap();
            let exact = dit.forward(&run, step, &x(step)).unwrap();
            if (1..7).contains(&step) {
                let given = region.gather(&x(step)).unwrap();
                let edited = dit.forward_region(&run, step, &given, &region, &kept).unwrap();
                v = region.scatter(&v, &edited).unwrap();
                assert!(got.equal(&v) && !got.equal(&exact), "{step}");
                assert_eq!(state.work()[step], StepWork::Edited(16));
            } else {
                assert!(got.equal(&exact), "{step}");
                assert_eq!(state.work()[step], StepWork::Computed);
            }
        }
    }
}

#[test]
fn a_keeping_step_that_a_first_block_ends_is_made_up_for() {
    use StepWork::{Computed, Skipped, WithoutReferences};
    let (dit, run) = setup();
    let x = |step| latents(1, step);
    let first_block = "first-block:threshold=10,most_skips=1";
    // Full: the first two steps, of which the second was to keep keys and values, and the last.
    let mut state = start(&dit, &run, first_block, "references:warmup=7,refresh=", None);
    let step = |step| dit.forward_cached(&run, step, &x(step), &mut state).unwrap();
    let got: Vec<Tensor> = (0..TIMES.len()).map(step).collect();
    let later = [Skipped, WithoutReferences, Skipped, WithoutReferences, Computed];
    assert_eq!(state.work(), [&[Computed, Skipped, Computed][..], &later].concat());
    assert!(got[2].equal(&dit.forward(&run, 2, &x(2)).unwrap()));
    let mut kept = KeptKv::new(&dit, &run, 1, KeptTokens::References).unwrap();
    let _ = dit.forward_keeping(&run, 2, &x(2), &mut kept).unwrap();
    for step in [4, 6] {
        let expected = dit.forward_reduced(&run, step, &x(step), &kept).unwrap();
        assert!(got[step].equal(&expected), "{step}");
    }
}
