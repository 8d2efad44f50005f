//! Steps that reuse the change of an earlier one: what they compute, by libtorch's operations and by kernels.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::{Case, TARGET, config, draw, prepare_times, target};
use kontext_core::{Kind, Tensor, check};
use kontext_dit::{
    Arithmetic, Dit, DitConfig, FirstReference, KeptKv, KeptTokens, ReferenceReuse, Run, State, StepCache, StepWork,
};
use kontext_nn::{Adapters, LinearAdapter, Weights};

/// Noise levels of the runs, of which neighbours are near each other.
const TIMES: [f32; 8] = [990.0, 900.0, 800.0, 690.0, 570.0, 440.0, 300.0, 150.0];
const CASE: Case = (1, 1, true);

fn model(config: &DitConfig, kind: Kind) -> Dit {
    Dit::new(&Weights::synthetic(3).kind(kind), config, |_| ()).unwrap()
}

fn cache(text: &str) -> StepCache {
    text.parse().unwrap()
}

/// The latents of each step: they change slowly, as in a run.
fn latents(case: Case, step: usize, kind: Kind) -> Tensor {
    let (from, to) = (target(case, Kind::Float), draw(&[case.1, TARGET, 8], 40));
    (from + to * (0.05 * step as f64)).to_kind(kind)
}

/// Velocities of all steps with a step cache, and the work of each.
fn cached(dit: &Dit, run: &Run, case: Case, kind: Kind, text: &str) -> (Vec<Tensor>, Vec<StepWork>) {
    let mut state = dit.step_cache(&cache(text), run).unwrap();
    let step = |step| {
        dit.forward_cached(run, step, &latents(case, step, kind), &mut state)
            .unwrap()
    };
    let velocities = (0..TIMES.len()).map(step).collect();
    (velocities, state.into_work())
}

fn plain(dit: &Dit, run: &Run, case: Case, kind: Kind) -> Vec<Tensor> {
    let step = |step| dit.forward(run, step, &latents(case, step, kind)).unwrap();
    (0..TIMES.len()).map(step).collect()
}

fn skipped(work: &[StepWork]) -> Vec<usize> {
    (0..work.len())
        .filter(|step| work[*step] == StepWork::Skipped)
        .collect()
}

/// The target's tokens in a state of a step with `text` tokens of text.
fn tokens(state: &State, text: i64) -> Option<Tensor> {
    match state {
        State::Streams { img, .. } => Some(img.narrow(1, 0, TARGET)),
        State::Joined(joined) => Some(joined.narrow(1, text, TARGET)),
        State::Target(target) => Some(target.shallow_clone()),
        State::Velocity(_) => None,
    }
}

/// The target's tokens before the first block of a step, after it, and after the last.
fn passed(dit: &Dit, run: &Run, step: usize, x: &Tensor) -> [Tensor; 3] {
    let mut state = dit.enter(run, x).unwrap();
    let mut all = vec![tokens(&state, common::TEXT).unwrap()];
    for piece in dit.pieces(run, step).unwrap() {
        state = piece.forward(&state, &piece.modulation()).unwrap();
        all.extend(tokens(&state, common::TEXT));
    }
    [0, 1, all.len() - 1].map(|index| all[index].shallow_clone())
}

/// The velocity of the target's tokens after the last block.
fn left(dit: &Dit, run: &Run, step: usize, tokens: Tensor) -> Tensor {
    let pieces = dit.pieces(run, step).unwrap();
    let last = pieces.last().unwrap();
    let state = last.forward(&State::Target(tokens), &last.modulation()).unwrap();
    state.velocity().unwrap().shallow_clone()
}

#[test]
fn without_a_cache_all_bytes_are_those_of_a_plain_run() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let dit = model(&config(2, 2), kind);
        let run = prepare_times(&dit, CASE, kind, &TIMES);
        let exact = plain(&dit, &run, CASE, kind);
        let (off, work) = cached(&dit, &run, CASE, kind, "off");
        assert!(exact.iter().zip(&off).all(|(a, b)| a.equal(b)));
        assert_eq!(work, [StepWork::Computed; 8]);
        // A mode that skips nothing computes the same, too.
        for text in [
            "magcache:most_skips=0",
            "taylor:interval=1",
            "first-block:threshold=0",
            "teacache:threshold=0",
        ] {
            let (all, work) = cached(&dit, &run, CASE, kind, text);
            assert_eq!(skipped(&work), [0; 0], "{text}");
            assert!(exact.iter().zip(&all).all(|(a, b)| a.equal(b)), "{text}");
        }
    }
}

#[test]
fn a_skipped_step_is_its_own_ends_around_the_change_of_the_last_computed_one() {
    for (double, single) in [(2, 2), (1, 0), (0, 1), (0, 2)] {
        let dit = model(&config(double, single), Kind::Float);
        let run = prepare_times(&dit, CASE, Kind::Float, &TIMES);
        let exact = plain(&dit, &run, CASE, Kind::Float);
        // Two of three that may be skipped are.
        let (got, work) = cached(
            &dit,
            &run,
            CASE,
            Kind::Float,
            "magcache:threshold=10,most_skips=2,start=0",
        );
        assert_eq!(skipped(&work), [1, 2, 4, 5], "{double} + {single}");
        let mut change = Tensor::new();
        for step in 0..TIMES.len() {
            let x = latents(CASE, step, Kind::Float);
            let [entered, _, last] = passed(&dit, &run, step, &x);
            if work[step] == StepWork::Computed {
                change = last - entered;
                assert!(got[step].equal(&exact[step]));
            } else {
                assert!(got[step].equal(&left(&dit, &run, step, entered + &change)), "{step}");
                assert!(!got[step].equal(&exact[step]));
            }
        }
    }
}

#[test]
fn taylor_extrapolates_along_the_last_two_changes() {
    let dit = model(&config(1, 2), Kind::Float);
    let run = prepare_times(&dit, CASE, Kind::Float, &TIMES);
    let (got, work) = cached(&dit, &run, CASE, Kind::Float, "taylor:interval=3,first=2");
    assert_eq!(skipped(&work), [2, 4, 5]);
    let change = |step: usize| {
        let [entered, _, last] = passed(&dit, &run, step, &latents(CASE, step, Kind::Float));
        (last - &entered, entered)
    };
    // Of the steps 0 and 1, one apart; then of 1 and 3, two apart.
    for (step, [before, last]) in [(2, [0, 1]), (4, [1, 3]), (5, [1, 3])] {
        let slope = (change(last).0 - change(before).0) / (last - before) as f64;
        let expected = change(step).1 + change(last).0 + slope * (step - last) as f64;
        let expected = left(&dit, &run, step, expected);
        let distance = check::relative_l2(&got[step], &expected).unwrap();
        assert!(distance < 1e-6, "{step}: {distance:e}");
    }
}

fn mean(x: &Tensor) -> f64 {
    x.abs().mean(Kind::Float).double_value(&[])
}

#[test]
fn the_first_block_decides_by_the_target_s_change_and_its_own_change_is_the_step_s() {
    let dit = model(&config(2, 1), Kind::Float);
    let run = prepare_times(&dit, CASE, Kind::Float, &TIMES);
    let at = |step: usize| passed(&dit, &run, step, &latents(CASE, step, Kind::Float));
    // Between the smallest and the largest difference of neighbours, so that it decides both ways.
    let distance = |a: usize, b: usize| {
        let [a, b] = [a, b].map(|step| {
            let [entered, first, _] = at(step);
            first - entered
        });
        mean(&(a - &b)) / mean(&b)
    };
    let neighbours: Vec<f64> = (1..7).map(|step| distance(step, step - 1)).collect();
    let threshold = neighbours.iter().sum::<f64>() / neighbours.len() as f64 * 1.5;
    let (got, work) = cached(
        &dit,
        &run,
        CASE,
        Kind::Float,
        &format!("first-block:threshold={threshold}"),
    );
    let skips = skipped(&work);
    assert!(
        (1..6).contains(&skips.len()),
        "{skips:?} of {neighbours:?} at {threshold}"
    );
    let mut last = 0;
    for step in 1..7 {
        let skip = distance(step, last) <= threshold;
        assert_eq!(work[step] == StepWork::Skipped, skip, "{step}");
        let [_, first, end] = at(step);
        if skip {
            let [_, kept_first, kept_end] = at(last);
            let expected = left(&dit, &run, step, first + (kept_end - kept_first));
            assert!(check::relative_l2(&got[step], &expected).unwrap() < 1e-6, "{step}");
        } else {
            assert!(check::relative_l2(&got[step], &left(&dit, &run, step, end)).unwrap() < 1e-6);
            last = step;
        }
    }
    assert_eq!([work[0], work[7]], [StepWork::Computed; 2]);
    // The limits hold whatever the differences are.
    let most = |text: &str| skipped(&cached(&dit, &run, CASE, Kind::Float, text).1);
    assert_eq!(most("first-block:threshold=10"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(most("first-block:threshold=10,first=3,most_skips=2"), [3, 4, 6]);
}

#[test]
fn teacache_skips_while_the_estimates_add_up_to_less_than_the_threshold() {
    let dit = model(&config(1, 1), Kind::Float);
    let run = prepare_times(&dit, CASE, Kind::Float, &TIMES);
    let counts = [0.1, 0.3, 1.0, 10.0].map(|threshold| {
        let text = format!("teacache:threshold={threshold},start=0,end=1");
        let (got, work) = cached(&dit, &run, CASE, Kind::Float, &text);
        let mut change = Tensor::new();
        for step in 0..TIMES.len() {
            let [entered, _, last] = passed(&dit, &run, step, &latents(CASE, step, Kind::Float));
            if work[step] == StepWork::Skipped {
                assert!(got[step].equal(&left(&dit, &run, step, entered + &change)), "{step}");
            } else {
                change = last - entered;
            }
        }
        skipped(&work).len()
    });
    assert!(
        counts.is_sorted() && counts[0] < counts[3] && counts[3] == 6,
        "{counts:?}"
    );
    let limited = |text: &str| skipped(&cached(&dit, &run, CASE, Kind::Float, text).1);
    assert_eq!(limited("teacache:threshold=10,start=0.25,end=0.625"), [2, 3, 4, 5]);
    assert_eq!(limited("teacache:threshold=10,start=0,end=1,most_skips=1"), [1, 3, 5]);
}

/// Modes that skip steps of these runs, with what they compute.
const MODES: [&str; 4] = [
    "magcache:threshold=10,most_skips=2,start=0",
    "taylor:interval=3,first=2",
    "first-block:threshold=10,most_skips=2",
    "teacache:threshold=10,start=0,end=1,most_skips=2",
];

#[test]
fn items_of_a_batch_and_roundings_of_references_work_with_each_mode() {
    let dit = model(&config(1, 1), Kind::Float);
    let other = |arithmetic| prepare_times(&dit, (2, 2, false), Kind::Float, &TIMES).arithmetic(arithmetic);
    for text in MODES {
        let native = cached(&dit, &other(Arithmetic::Fewest), (2, 2, false), Kind::Float, text);
        for arithmetic in [Arithmetic::Diffusers, Arithmetic::Bfl] {
            // In f32 the roundings change nothing but the operations' order.
            let (got, work) = cached(&dit, &other(arithmetic), (2, 2, false), Kind::Float, text);
            assert_eq!(work, native.1);
            for (got, native) in got.iter().zip(&native.0) {
                assert_eq!(got.size(), [2, TARGET, 8]);
                assert!(check::relative_l2(got, native).unwrap() < 1e-5, "{text}");
            }
        }
    }
}

/// Noise levels of [`TIMES`].
fn sigmas() -> Vec<f32> {
    TIMES.iter().map(|time| time / 1000.0).chain([0.0]).collect()
}

#[test]
fn a_computed_step_may_read_kept_keys_and_a_skipped_full_step_is_made_up_for() {
    use StepWork::{Computed, Skipped, WithoutReferences};
    let dit = model(&config(1, 2), Kind::Float);
    let run = prepare_times(&dit, CASE, Kind::Float, &TIMES);
    let x = |step| latents(CASE, step, Kind::Float);
    let exact = plain(&dit, &run, CASE, Kind::Float);
    let magcache = cache("magcache:threshold=10,most_skips=2,start=0");
    let reused = |text: &str| {
        let reuse: ReferenceReuse = text.parse().unwrap();
        let state = dit.step_cache(&magcache, &run).unwrap();
        let mut state = state.reuse_references(&reuse, &run, &sigmas(), None).unwrap();
        let step = |step| dit.forward_cached(&run, step, &x(step), &mut state).unwrap();
        let velocities: Vec<Tensor> = (0..TIMES.len()).map(step).collect();
        let planned = magcache.schedule_with(Some(&reuse), &sigmas(), true);
        assert_eq!(planned.as_deref(), Some(state.work()), "{text}");
        (velocities, state.into_work())
    };
    // Full: the first and the last.
    let (got, work) = reused("references:warmup=4,refresh=");
    let inner = [WithoutReferences, Skipped, Skipped, WithoutReferences];
    assert_eq!(work, [&[Computed, Skipped, Skipped][..], &inner, &[Computed]].concat());
    for step in [0, 7] {
        assert!(got[step].equal(&exact[step]));
    }
    let mut kept = KeptKv::new(&dit, &run, 1, KeptTokens::References).unwrap();
    let _ = dit.forward_keeping(&run, 0, &x(0), &mut kept).unwrap();
    for step in [3, 6] {
        let expected = dit.forward_reduced(&run, step, &x(step), &kept).unwrap();
        assert!(got[step].equal(&expected) && !expected.equal(&exact[step]));
    }
    // Also step 4, which is skipped, so step 6 is.
    let (got, work) = reused("references:warmup=4");
    assert_eq!(work[3..], [WithoutReferences, Skipped, Skipped, Computed, Computed]);
    assert!(got[6].equal(&exact[6]));
    // The first steps, of which one was to keep the keys that step 3 would read.
    let (got, work) = reused("references:warmup=7,refresh=");
    assert_eq!(work[3..], [Computed, Skipped, Skipped, WithoutReferences, Computed]);
    assert!(got[3].equal(&exact[3]));
    let _ = dit.forward_keeping(&run, 3, &x(3), &mut kept).unwrap();
    assert!(got[6].equal(&dit.forward_reduced(&run, 6, &x(6), &kept).unwrap()));
}

#[test]
fn modes_that_decide_while_running_have_reduced_steps_too() {
    use StepWork::{Computed, Skipped, WithoutReferences};
    let dit = model(&config(1, 2), Kind::Float);
    let run = prepare_times(&dit, CASE, Kind::Float, &TIMES);
    let reuse: ReferenceReuse = "references:warmup=4,refresh=".parse().unwrap();
    for mode in [
        "first-block:threshold=10,most_skips=1",
        "teacache:threshold=10,start=0,end=1,most_skips=1",
    ] {
        let state = dit.step_cache(&cache(mode), &run).unwrap();
        let mut state = state.reuse_references(&reuse, &run, &sigmas(), None).unwrap();
        for step in 0..TIMES.len() {
            let x = latents(CASE, step, Kind::Float);
            let v = dit.forward_cached(&run, step, &x, &mut state).unwrap();
            assert_eq!(v.size(), x.size());
        }
        let pair = [Skipped, WithoutReferences];
        assert_eq!(
            state.work(),
            [&[Computed][..], &pair, &pair, &pair, &[Computed]].concat(),
            "{mode}"
        );
    }
}

#[test]
fn edited_tokens_are_chosen_once_and_the_others_move_on() {
    let dit = model(&config(1, 2), Kind::Float);
    let run = prepare_times(&dit, CASE, Kind::Float, &TIMES);
    let x = |step| latents(CASE, step, Kind::Float);
    let first = |latents: Tensor| FirstReference {
        latents,
        grid: [1, 7],
        target: [1, 7],
    };
    let start = |reuse: &ReferenceReuse, reference| {
        let state = dit.step_cache(&StepCache::Off, &run).unwrap();
        state.reuse_references(reuse, &run, &sigmas(), reference)
    };
    let reuse: ReferenceReuse = "region:warmup=4,refresh=".parse().unwrap();
    let v = dit.forward(&run, 0, &x(0)).unwrap();
    let estimate = x(0) - &v * f64::from(sigmas()[0]);
    // A grid of one row has no token with all neighbours: nothing is edited, and the velocity stays.
    let mut state = start(&reuse, Some(first(-&estimate))).unwrap();
    for step in 0..7 {
        assert!(
            dit.forward_cached(&run, step, &x(step), &mut state).unwrap().equal(&v),
            "{step}"
        );
    }
    assert_eq!(state.work()[1..], [StepWork::Edited(0); 6]);
    let error = start(&reuse, None).unwrap_err().to_string();
    assert!(error.contains("expected the first reference's latents"), "{error}");
    let other = FirstReference {
        grid: [7, 1],
        ..first(estimate.shallow_clone())
    };
    let error = start(&reuse, Some(other)).unwrap_err().to_string();
    let expected = "a first reference of the target's 1 rows and 7 columns of tokens, got 7 rows and 1 columns";
    assert!(error.contains(expected), "{error}");
    let state = dit.step_cache(&cache("magcache"), &run).unwrap();
    let error = state
        .reuse_references(&reuse, &run, &sigmas(), Some(first(estimate)))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("expected off: they have an estimated velocity"),
        "{error}"
    );
    let state = dit.step_cache(&cache("magcache"), &run).unwrap();
    let error = state
        .reuse_references(&ReferenceReuse::default(), &run, &[1.0, 0.0], None)
        .unwrap_err();
    assert!(
        error.to_string().contains("invalid sigmas: expected 9, got 2"),
        "{error}"
    );
}

#[test]
fn what_a_cached_run_cannot_do_is_refused() {
    let dit = model(&config(1, 1), Kind::Float);
    let run = prepare_times(&dit, CASE, Kind::Float, &TIMES);
    let x = |batch| latents((1, batch, true), 0, Kind::Float);
    let mut state = dit.step_cache(&cache(MODES[0]), &run).unwrap();
    let _ = dit.forward_cached(&run, 0, &x(1), &mut state).unwrap();
    let mut refused = |step, x: &Tensor| dit.forward_cached(&run, step, x, &mut state).unwrap_err().to_string();
    let error = refused(2, &x(1));
    assert_eq!(error, "invalid step of a cached run: expected 1, the next one, got 2");
    let error = refused(1, &x(2));
    assert!(error.contains("the batch of the steps before, 1, got 2"), "{error}");
    let error = refused(1, &x(1).set_requires_grad(true));
    assert!(error.contains("without gradients"), "{error}");
    let mut adapters = Adapters::new();
    let factors = [draw(&[2, 64], 11), draw(&[192, 2], 12)].map(|factor| factor.set_requires_grad(true));
    let [down, up] = factors.each_ref().map(Tensor::shallow_clone);
    adapters.add(
        "double_blocks.0.img_attn.qkv",
        LinearAdapter::low_rank(down, up, 1.0, 0).unwrap(),
    );
    dit.slots().set(&adapters).unwrap();
    let error = refused(1, &x(1));
    assert!(error.contains("without gradients"), "{error}");
    let mut wrong = cache("magcache");
    if let StepCache::MagCache(mag) = &mut wrong {
        mag.threshold = f64::NAN;
    }
    assert!(dit.step_cache(&wrong, &run).is_err());
}

#[cfg(target_os = "linux")] // The emulator's.
mod by_kernels {
    use std::sync::Arc;

    use kontext_emulator::Emulator;
    use kontext_kernels::{KernelShape, Kernels};

    use super::*;

    /// Compares each mode's steps by kernels, run by the emulator, with those by libtorch in bf16 and in f32.
    #[test]
    fn each_mode_is_as_close_to_f32_by_kernels_as_without() {
        for (double, single) in [(2, 2), (1, 0), (0, 1)] {
            let config = config(double, single);
            let wide = model(&config, Kind::BFloat16);
            let mut dit = model(&config, Kind::BFloat16);
            let shape = KernelShape::new(config.width(), config.head_dim, config.mlp_width).unwrap();
            let kernels = Kernels::launched_by(Arc::new(Emulator::default()), &shape);
            for text in MODES {
                let exact_run = prepare_times(&wide, CASE, Kind::Float, &TIMES);
                let (exact, work) = cached(&wide, &exact_run, CASE, Kind::Float, text);
                let by = |dit: &Dit| {
                    let run = prepare_times(dit, CASE, Kind::BFloat16, &TIMES);
                    let (got, by) = cached(dit, &run, CASE, Kind::BFloat16, text);
                    assert_eq!(by, work, "{text}");
                    let distance = |(a, b): (&Tensor, &Tensor)| check::relative_l2(&a.to_kind(Kind::Float), b).unwrap();
                    let all = got.iter().zip(&exact).map(distance);
                    all.fold(0.0, |sum: f64, distance| sum + distance) / got.len() as f64
                };
                let plain = by(&dit);
                dit.set_kernels(Some(kernels.clone()));
                let fused = by(&dit);
                dit.set_kernels(None);
                assert!(fused < 1.1 * plain && plain < 0.02, "{text}: {fused:e}, {plain:e}");
                assert!(fused != plain, "kernels made no difference");
            }
        }
    }
}
