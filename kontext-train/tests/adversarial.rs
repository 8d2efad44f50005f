//! Adversarial runs on a small model: resume, methods, the critic's reports, the teacher's images, and signs
//! of failure.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod world;

use std::ops::ControlFlow;

use image::{Rgb, RgbImage};
use kontext::Lora;
use kontext_core::Error;
use kontext_nn::Weights;
use kontext_train::{
    AdversarialObjective, LoraMethod, Method, Objective, ProbeOptions, Real, Recipe, Sign, TrainEvent, Trainer, probe,
};
use serde_json::json;
use world::{SIDE, World, go_on, reason, train};

const SOURCES: [[u8; 3]; 6] = [
    [220, 40, 40],
    [40, 170, 60],
    [50, 70, 220],
    [20, 20, 20],
    [200, 180, 40],
    [120, 30, 160],
];

/// A model, and squares to invert, of which two are held out.
fn world() -> World {
    let world = World::new(2, 8);
    let mut lines = Vec::new();
    for (index, colour) in SOURCES.iter().enumerate() {
        let image = |colour: [u8; 3]| {
            RgbImage::from_fn(SIDE, SIDE, |x, y| {
                let inside = (x / 4 + y / 4 + index as u32).is_multiple_of(3);
                Rgb(if inside { colour } else { [250, 250, 250] })
            })
        };
        world.image(&format!("{index}-source.png"), &image(*colour));
        world.image(&format!("{index}-target.png"), &image(colour.map(|value| 255 - value)));
        lines.push(json!({
            "source": format!("{index}-source.png"), "target": format!("{index}-target.png"),
            "instruction": "invert it", "split": if index < 2 { "test" } else { "train" },
        }));
    }
    world.metadata(lines);
    world
}

fn recipe(world: &World, out: &str, steps: u64, objective: AdversarialObjective) -> Recipe {
    let mut recipe: Recipe = serde_json::from_value(json!({
        "model": world.path("model"), "out": world.path(out), "steps": steps, "device": "cpu", "ema": 0.9,
        "data": {"folder": world.path("data"), "cache": world.path("cache"), "batch": 2, "validation_items": 2},
        "optimizer": {"beta1": 0.0, "beta2": 0.99, "weight_decay": 0.0},
        "rate": {"peak": 1e-4, "warmup": 0, "floor": 1.0},
        "every": {"save": 0, "validate": 0, "sample": 0},
    }))
    .unwrap();
    recipe.objective = Objective::Adversarial(Box::new(objective));
    recipe
}

fn objective() -> AdversarialObjective {
    AdversarialObjective {
        warmup: 2,
        head_width: 16,
        r1_every: 2,
        ..AdversarialObjective::default()
    }
}

fn lora(dora: bool) -> Method {
    Method::Lora(LoraMethod {
        rank: 2,
        dora,
        ..LoraMethod::default()
    })
}

fn state(recipe: &Recipe) -> Weights {
    Weights::open(recipe.out.join("state.safetensors")).unwrap()
}

/// Compares the states of two runs, and returns the tensors' names.
fn same_state(a: &Recipe, b: &Recipe) -> Vec<String> {
    let (a, b) = (state(a), state(b));
    assert_eq!(a.names(), b.names());
    for name in a.names() {
        assert!(a.raw(&name).unwrap().equal(&b.raw(&name).unwrap()), "{name} differs");
    }
    a.names()
}

/// Stops a run after 3 steps, resumes it, and compares it with an unbroken one.
fn resumed(world: &World, change: impl Fn(&mut Recipe)) -> Vec<String> {
    let recipe = |out: &str| {
        let mut recipe = recipe(world, out, 6, objective());
        recipe.every.validate = 2;
        change(&mut recipe);
        let _ = std::fs::remove_dir_all(&recipe.out);
        recipe
    };
    let (unbroken, broken) = (recipe("unbroken"), recipe("broken"));
    train(&unbroken).unwrap();
    let stop = |event: TrainEvent<'_>| match event {
        TrainEvent::Step(report) if report.step == 3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let stopped = Trainer::open(broken.clone(), go_on).unwrap().run(stop);
    assert!(stopped.unwrap_err().is_cancelled());
    let mut resumed = Trainer::open(broken.clone(), go_on).unwrap();
    assert_eq!(resumed.step(), 3);
    resumed.run(go_on).unwrap();
    for file in ["curve.csv", "curve.svg"] {
        let read = |recipe: &Recipe| std::fs::read(recipe.out.join(file)).unwrap();
        assert!(read(&unbroken) == read(&broken), "{file}");
    }
    same_state(&unbroken, &broken)
}

#[test]
fn a_resumed_run_gives_the_bits_of_an_unbroken_one() {
    let world = world();
    let names = resumed(&world, |recipe| recipe.data.accumulate = 2);
    for name in [
        "critic.values",
        "critic.optimizer.square",
        "critic.spectral",
        "curve.critic",
        "held_out",
    ] {
        assert!(names.iter().any(|found| found == name), "{name}");
    }
}

#[test]
fn so_does_a_lora_against_the_teachers_images_with_turns_and_checkpointing() {
    let world = world();
    resumed(&world, |recipe| {
        (recipe.method, recipe.recompute) = (lora(true), true);
        recipe.objective = Objective::Adversarial(Box::new(AdversarialObjective {
            student_every: 2,
            real: Real::Teacher {
                guidance: 2.0,
                steps: 2,
            },
            ..objective()
        }));
    });
}

#[test]
fn the_critic_is_reported_and_in_the_curve() {
    let world = world();
    let recipe = recipe(&world, "run", 4, objective());
    let mut reports = Vec::new();
    let collect = |event: TrainEvent<'_>| {
        if let TrainEvent::Step(report) = event {
            reports.push(report);
        }
        ControlFlow::Continue(())
    };
    Trainer::open(recipe.clone(), go_on).unwrap().run(collect).unwrap();
    for report in &reports {
        let critic = report.critic.unwrap();
        assert!(report.norm > 0.0 && critic.critic_norm > 0.0 && critic.student_loss > 0.0);
        assert!([0.0, 0.5, 1.0].contains(&critic.accuracy), "two pairs in a batch");
    }
    let curve = std::fs::read_to_string(recipe.out.join("curve.csv")).unwrap();
    let header = curve.lines().next().unwrap();
    assert!(header.ends_with("student_term,critic_loss,paired_accuracy,critic_gradient_norm"));
    assert!(curve.lines().all(|line| line.split(',').count() == 9), "{curve}");
}

/// Errors of the images at a level of 0.05 are hundreds of times smaller than those at 1.
#[test]
fn the_levels_after_the_warm_up_are_no_divergence() {
    let world = world();
    let levels = AdversarialObjective {
        levels: Some(vec![1.0, 0.05]),
        shares: vec![1.0, 0.0],
        warmup_shares: vec![0.0, 1.0],
        warmup: 10,
        adversarial_weight: 0.0,
        mse_weight: 1.0,
        ..objective()
    };
    let mut recipe = recipe(&world, "run", 40, levels);
    recipe.rate.peak = 1e-9;
    let mut losses = Vec::new();
    let collect = |event: TrainEvent<'_>| {
        if let TrainEvent::Step(report) = event {
            losses.push(report.loss);
        }
        ControlFlow::Continue(())
    };
    Trainer::open(recipe, go_on).unwrap().run(collect).unwrap();
    assert!(losses[10] > 100.0 * losses[9], "{losses:?}");
}

/// Below a level of 1 the noisy targets are the start: from pure noise at a low level the results would be noise.
#[test]
fn results_of_lower_levels_are_made_from_where_the_student_is_trained() {
    let world = world();
    let near = AdversarialObjective {
        levels: Some(vec![1.0, 0.002]),
        shares: vec![0.0, 1.0],
        warmup_shares: vec![0.0, 1.0],
        ..objective()
    };
    let mut recipe = recipe(&world, "run", 1, near);
    (recipe.rate.peak, recipe.every.validate) = (1e-9, 1);
    let mut found = Vec::new();
    let collect = |event: TrainEvent<'_>| {
        if let TrainEvent::Compared(quality) = event {
            found.push(quality);
        }
        ControlFlow::Continue(())
    };
    Trainer::open(recipe, go_on).unwrap().run(collect).unwrap();
    let [quality] = found[..] else {
        unreachable!("{found:?}")
    };
    assert!(
        (quality.sharpness - 1.0).abs() < 0.02 && quality.right == 1.0,
        "{quality:?}"
    );
}

#[test]
fn students_and_critics_take_turns() {
    let world = world();
    let turns = AdversarialObjective {
        student_every: 3,
        ..objective()
    };
    let recipe = recipe(&world, "run", 3, turns);
    let mut norms = Vec::new();
    let collect = |event: TrainEvent<'_>| {
        if let TrainEvent::Step(report) = event {
            norms.push((report.norm > 0.0, report.critic.unwrap().critic_norm > 0.0));
        }
        ControlFlow::Continue(())
    };
    Trainer::open(recipe, go_on).unwrap().run(collect).unwrap();
    assert_eq!(norms, [(false, true), (false, true), (true, true)]);
}

#[test]
fn without_an_adversarial_term_no_critic_is_trained() {
    let world = world();
    let control = AdversarialObjective {
        adversarial_weight: 0.0,
        mse_weight: 1.0,
        ..objective()
    };
    let recipe = recipe(&world, "run", 2, control);
    train(&recipe).unwrap();
    assert!(!state(&recipe).names().iter().any(|name| name.contains("critic")));
}

/// The images made again after adapters have moved are those made before: the teacher's passes have none of
/// them.
#[test]
fn the_teacher_of_a_lora_is_the_base_model() {
    let world = world();
    let made = AdversarialObjective {
        real: Real::Teacher {
            guidance: 2.0,
            steps: 2,
        },
        ..objective()
    };
    let mut recipe = recipe(&world, "run", 2, made);
    (recipe.method, recipe.rate.peak) = (lora(true), 1e-2);
    train(&recipe).unwrap();
    let images = || std::fs::read(world.path("cache/teacher/00000.safetensors")).unwrap();
    let before = images();
    std::fs::remove_dir_all(world.path("cache/teacher")).unwrap();
    let mut longer = recipe.clone();
    (longer.steps, longer.accept_changes) = (3, vec!["steps".to_owned()]);
    let Method::Lora(method) = &mut longer.method else {
        unreachable!()
    };
    method.default_scale = Some(1.5);
    train(&longer).unwrap();
    assert!(images() == before);
    let facts = Lora::open(recipe.out.join("lora.safetensors")).unwrap();
    let fact = |name: &str| facts.facts()[name].clone();
    assert_eq!(
        [
            "kontext.steps",
            "kontext.sampler",
            "kontext.guidance",
            "modelspec.lora_default_weight"
        ]
        .map(fact),
        ["4", "consistency", "2.5", "1.5"]
    );
}

#[test]
fn a_critic_that_wins_ends_the_run_with_its_reason_after_a_warning() {
    let world = world();
    // The student hardly moves, and the random model's images are far from the data.
    let patient = AdversarialObjective {
        patience: 24,
        critic_rate: 1e-2,
        ..objective()
    };
    let mut recipe = recipe(&world, "run", 500, patient);
    (recipe.rate.peak, recipe.every.save) = (1e-9, 6);
    let mut warned = Vec::new();
    let collect = |event: TrainEvent<'_>| {
        if let TrainEvent::Failing { step, sign } = event {
            warned.push((step, sign));
        }
        ControlFlow::Continue(())
    };
    let mut trainer = Trainer::open(recipe.clone(), go_on).unwrap();
    let error = trainer.run(collect).unwrap_err();
    let Error::Collapsed { step, sign, remedy } = &error else {
        unreachable!("{error}")
    };
    assert!(
        sign.starts_with("the critic has won: it ranks 1.000 of the pairs right"),
        "{sign}"
    );
    assert!(remedy.contains("objective.critic_rate"), "{remedy}");
    assert!(
        matches!(warned.first(), Some((12 | 24, Sign::Won { .. }))),
        "{warned:?}"
    );
    assert!(*step <= 48, "{step}");
    // The state before is kept, and the values of the failed training are not exported.
    let saved: u64 = state(&recipe).store().metadata()["step"].parse().unwrap();
    assert!(saved < *step, "{saved} of {step}");
    assert_eq!(trainer.export().unwrap_err().to_string(), error.to_string());
    // Without patience the same run only warns.
    let Objective::Adversarial(objective) = &mut recipe.objective else {
        unreachable!("it is adversarial")
    };
    (objective.patience, recipe.steps) = (0, 60);
    recipe.accept_changes = vec!["steps".to_owned()];
    train(&recipe).unwrap();
}

/// Noisy targets at a level of 0.3 are nearest to themselves, until the student is trained by noise. No window of
/// steps ends, so that the end is one of the held-out results.
#[test]
fn a_student_against_heads_that_do_not_learn_forgets_and_is_stopped() {
    let world = world();
    let untrained = AdversarialObjective {
        levels: Some(vec![0.3]),
        shares: vec![1.0],
        warmup_shares: vec![1.0],
        critic_rate: 0.0,
        patience: 1_000_000,
        ..objective()
    };
    let mut recipe = recipe(&world, "run", 500, untrained);
    (recipe.rate.peak, recipe.every.validate) = (1e-3, 5);
    let (mut validated, mut compared, mut warned) = (Vec::new(), Vec::new(), Vec::new());
    let collect = |event: TrainEvent<'_>| {
        match event {
            TrainEvent::Validated { step, .. } => validated.push(step),
            TrainEvent::Compared(quality) => compared.push((quality.step, quality.right)),
            TrainEvent::Failing { step, sign } => warned.push((step, sign)),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let error = Trainer::open(recipe, go_on).unwrap().run(collect).unwrap_err();
    let Error::Collapsed { step, sign, remedy } = &error else {
        unreachable!("{error}")
    };
    assert!(
        sign.ends_with("nearest to their truths in 0.50 of the cases, after 1.00 at the first validation"),
        "{sign}"
    );
    assert!(remedy.contains("objective.mse_weight"), "{remedy}");
    let forgotten = Sign::Forgotten { right: 0.5, first: 1.0 };
    assert_eq!(warned, [(step - 5, forgotten)]);
    // The validation that ends the run is reported, too.
    assert_eq!((validated.last(), compared.last()), (Some(step), Some(&(*step, 0.5))));
    assert_eq!(compared[0], (5, 1.0));
}

#[test]
fn a_block_that_the_model_does_not_have_is_refused_before_any_work() {
    let world = world();
    let blocks = AdversarialObjective {
        blocks: Some(vec![0, 7]),
        ..objective()
    };
    let error = recipe(&world, "run", 2, blocks).check().unwrap_err().to_string();
    assert!(error.contains("objective.blocks") && error.contains("got 7"), "{error}");
}

#[test]
fn heads_of_another_width_are_another_run() {
    let world = world();
    let mut recipe = recipe(&world, "run", 2, objective());
    train(&recipe).unwrap();
    let Objective::Adversarial(objective) = &mut recipe.objective else {
        unreachable!("it is adversarial")
    };
    objective.head_width = 24;
    let error = reason(&recipe.check().unwrap_err());
    assert!(
        error.contains("objective.head_width was 16 and is 24; these cannot change"),
        "{error}"
    );
    recipe.objective = Objective::default();
    let error = reason(&recipe.check().unwrap_err());
    assert!(
        error.contains("objective.kind was \"adversarial\" and is not set"),
        "{error}"
    );
}

#[test]
fn a_run_gets_and_loses_no_critic_and_may_weigh_it_otherwise() {
    let world = world();
    let weighed = |adversarial_weight| AdversarialObjective {
        adversarial_weight,
        mse_weight: 1.0,
        ..objective()
    };
    for (out, before, now) in [("with", 1.0, 0.0), ("without", 0.0, 1.0)] {
        let mut recipe = recipe(&world, out, 2, weighed(before));
        train(&recipe).unwrap();
        recipe.objective = Objective::Adversarial(Box::new(weighed(now)));
        recipe.accept_changes = vec!["objective.adversarial_weight".to_owned()];
        let error = reason(&recipe.check().unwrap_err());
        let words = format!("objective.adversarial_weight was {before:?} and is {now:?}; these cannot change");
        assert!(error.contains(&words), "{error}");
    }
    let mut recipe = recipe(&world, "with", 4, weighed(0.5));
    recipe.accept_changes = ["steps", "objective.adversarial_weight"].map(str::to_owned).to_vec();
    train(&recipe).unwrap();
    // What it has saved is read again.
    train(&recipe).unwrap();
    assert_eq!(Trainer::open(recipe, go_on).unwrap().step(), 4);
}

/// The random model's images are far from the data, so that heads rank held-out pairs right after a few steps.
#[test]
fn a_probe_measures_where_the_critic_ranks_pairs_right() {
    let world = world();
    let eager = AdversarialObjective {
        critic_rate: 1e-2,
        r1: 0.0,
        ..objective()
    };
    let mut recipe = recipe(&world, "run", 2, eager);
    let options = ProbeOptions {
        levels: vec![0.05, 0.2],
        training: 4,
        held_out: 2,
        steps: 24,
    };
    let (mut levels, mut warnings) = (0, Vec::new());
    let count = |event: TrainEvent<'_>| {
        match event {
            TrainEvent::Encoding(fill) if fill.what == "levels" => levels += 1,
            TrainEvent::Warning(warning) => warnings.push(warning.to_string()),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let report = probe(&recipe, &options, count).unwrap();
    assert_eq!((levels, report.blocks.len(), report.rows.len()), (2, 3, 2));
    assert!(
        matches!(&warnings[..], [warning] if warning.contains("objective.r1_every")),
        "{warnings:?}"
    );
    for row in &report.rows {
        assert_eq!((row.accuracy, row.pairs, row.by_block.len()), (1.0, 2, 3), "{row:?}");
        assert!(row.loss < 0.69, "{row:?}");
    }
    let text = report.to_string();
    assert!(
        text.contains("0.050  1.000") && text.contains("critic_density = { kind = \"logit-normal\", mean = -2.2"),
        "{text}"
    );
    // It trains nothing, and is the same again.
    assert!(!recipe.out.join("state.safetensors").exists());
    assert_eq!(probe(&recipe, &options, go_on).unwrap(), report);
    let made = Real::Teacher {
        guidance: 2.0,
        steps: 2,
    };
    recipe.objective = Objective::Adversarial(Box::new(AdversarialObjective {
        real: made,
        ..objective()
    }));
    let error = probe(&recipe, &options, go_on).unwrap_err().to_string();
    assert!(error.contains("objective.real.kind: expected \"data\""), "{error}");
    recipe.objective = Objective::default();
    let error = probe(&recipe, &options, go_on).unwrap_err().to_string();
    assert!(error.contains("objective.kind: expected \"adversarial\""), "{error}");
}
