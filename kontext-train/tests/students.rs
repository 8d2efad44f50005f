//! Few-step students as models: the defaults of a run with them, and a control without a critic.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod world;

use std::ops::ControlFlow;

use image::{Rgb, RgbImage};
use kontext::{Conformance, Device, Kind, ModelDefaults, Pipeline, Request, Sampler, Schedule, Size};
use kontext_train::{AdversarialObjective, Base, Method, Objective, Recipe, TrainEvent, Trainer, assemble};
use serde_json::json;
use world::{SIDE, World, go_on, train};

/// The noise levels of four steps at a fixed shift of 3.
const LEVELS: [f64; 4] = [1.0, 0.9, 0.75, 0.5];

/// A model of 12 sampling steps, and a pair of images in either split.
fn world() -> World {
    let world = World::new(12, 8);
    for (name, colour) in [("a.png", [200, 40, 30]), ("b.png", [30, 40, 200])] {
        world.image(name, &RgbImage::from_pixel(SIDE, SIDE, Rgb(colour)));
    }
    let line = |split| json!({"source": "a.png", "target": "b.png", "instruction": "make it blue", "split": split});
    world.metadata(["train", "test"].map(line));
    world
}

/// The recipe of a full student without a critic.
fn recipe(world: &World, out: &str, change: impl FnOnce(&mut AdversarialObjective)) -> Recipe {
    let mut recipe: Recipe = serde_json::from_value(json!({
        "model": world.path("model"), "out": world.path(out), "steps": 1, "device": "cpu", "ema": 0.0,
        "data": {"folder": world.path("data"), "cache": world.path("cache"), "batch": 1, "validation_items": 1},
        "rate": {"peak": 1e-6, "warmup": 0, "floor": 1.0},
        "every": {"save": 0, "validate": 0, "sample": 1},
    }))
    .unwrap();
    let mut objective = AdversarialObjective {
        adversarial_weight: 0.0,
        mse_weight: 1.0,
        warmup: 0,
        ..AdversarialObjective::default()
    };
    change(&mut objective);
    recipe.objective = Objective::Adversarial(Box::new(objective));
    recipe
}

#[test]
fn a_full_student_is_sampled_in_its_steps_by_default() {
    let world = world();
    let recipe = recipe(&world, "run", |objective| {
        (objective.levels, objective.guidance) = (Some(LEVELS.to_vec()), 1.5);
    });
    train(&recipe).unwrap();
    let student = ModelDefaults::of(&recipe.out).unwrap();
    let base = ModelDefaults::of(world.path("model")).unwrap();
    assert_eq!((student.steps, student.sampler), (Some(4), Some(Sampler::Consistency)));
    assert_eq!((&student.sizes, student.max_sequence_length), (&base.sizes, Some(8)));
    let whole = world.path("assembled");
    assemble(&world.path("model"), &recipe.out, &whole, Kind::Float).unwrap();
    let request = Request::edit(RgbImage::new(SIDE, SIDE), "make it blue");
    let plan = Pipeline::builder().device(Device::Cpu).plan(&whole, &request).unwrap();
    assert_eq!((plan.sampler, plan.guidance), (Sampler::Consistency, Some(1.5)));
    let sigmas = plan.schedule.sigmas();
    assert_eq!(sigmas.len(), 5);
    for (sigma, level) in sigmas.iter().zip(LEVELS) {
        assert!((f64::from(*sigma) - level).abs() < 1e-6, "{sigma} {level}");
    }
}

#[test]
fn the_defaults_of_other_trainings_are_the_base_models() {
    let world = world();
    let mut recipe = recipe(&world, "run", |_| ());
    (recipe.objective, recipe.method) = (Objective::default(), Method::Full);
    train(&recipe).unwrap();
    assert!(!recipe.out.join("kontext.json").exists());
    let whole = world.path("assembled");
    assemble(&world.path("model"), &recipe.out, &whole, Kind::Float).unwrap();
    let defaults = |folder| ModelDefaults::of(world.path(folder)).unwrap();
    assert_eq!(defaults("assembled"), defaults("model"));
}

/// Both students are the base model at a rate of nearly 0, so that their samples differ by the levels only.
#[test]
fn sample_grids_are_of_the_students_levels() {
    let world = world();
    let grid = |out: &str, levels: Option<&[f64]>| {
        let mut recipe = recipe(&world, out, |objective| {
            objective.levels = levels.map(<[f64]>::to_vec);
            objective.shares = vec![1.0; levels.map_or(4, <[f64]>::len)];
        });
        recipe.rate.peak = 1e-12;
        train(&recipe).unwrap();
        image::open(recipe.out.join("samples-000001.png")).unwrap().into_rgb8()
    };
    let tokens = Size::new(SIDE, SIDE).grid().unwrap().tokens();
    let shift = Base::open(world.path("model")).unwrap().shift;
    let schedule = Schedule::new(4, tokens, shift, Conformance::Native).unwrap();
    let same: Vec<f64> = schedule
        .sigmas()
        .iter()
        .take(4)
        .map(|sigma| f64::from(*sigma))
        .collect();
    let usual = grid("usual", None);
    assert_eq!(usual, grid("same", Some(&same)));
    assert_ne!(usual, grid("other", Some(&LEVELS)));
    assert_ne!(usual, grid("one", Some(&[1.0])));
}

#[test]
fn without_a_critic_each_turn_is_the_students() {
    let world = world();
    let mut recipe = recipe(&world, "run", |objective| objective.student_every = 3);
    (recipe.steps, recipe.every.sample) = (4, 0);
    let mut norms = Vec::new();
    let collect = |event: TrainEvent<'_>| {
        if let TrainEvent::Step(report) = event {
            norms.push(report.norm);
        }
        ControlFlow::Continue(())
    };
    Trainer::open(recipe, go_on).unwrap().run(collect).unwrap();
    assert!(norms.len() == 4 && norms.iter().all(|norm| *norm > 0.0), "{norms:?}");
}
