//! Guidance distillation on a small model: the loss of a fresh student, learning, a new embedding, and
//! resume.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod world;

use std::ops::ControlFlow;

use image::{Rgb, RgbImage};
use kontext::{Device, Kind, Pipeline, Request, save_part};
use kontext_nn::Weights;
use kontext_train::{Base, GuidedObjective, LoraMethod, Method, Objective, Recipe, TrainEvent, Trainer};
use serde_json::json;
use world::{SIDE, World, go_on, train};

/// A model, with a guidance embedding or without, and pairs of images.
fn world(embeds: bool) -> World {
    let world = World::new(2, 8);
    if !embeds {
        let base = Base::open(world.path("model")).unwrap();
        let mut tensors = base.transformer_tensors().unwrap();
        tensors.retain(|(name, _)| !name.starts_with("guidance_in."));
        let mut config = base.config;
        config.guidance_embed = false;
        save_part::transformer(world.path("model"), tensors, &config).unwrap();
    }
    let mut lines = Vec::new();
    for n in 0..6_u8 {
        for (name, colour) in [("source", [200, 40 * n, 30]), ("target", [30, 40 * n, 200])] {
            world.image(
                &format!("{n}-{name}.png"),
                &RgbImage::from_pixel(SIDE, SIDE, Rgb(colour)),
            );
        }
        lines.push(json!({
            "source": format!("{n}-source.png"), "target": format!("{n}-target.png"),
            "instruction": "make it blue", "split": if n < 2 { "test" } else { "train" },
        }));
    }
    world.metadata(lines);
    world
}

fn recipe(world: &World, out: &str, steps: u64, lowest: f64, highest: f64) -> Recipe {
    let mut recipe: Recipe = serde_json::from_value(json!({
        "model": world.path("model"), "out": world.path(out), "steps": steps, "device": "cpu", "ema": 0.0,
        "data": {"folder": world.path("data"), "cache": world.path("cache"), "batch": 2, "validation_items": 2},
        "rate": {"peak": 3e-6, "warmup": 0, "floor": 0.1},
        "every": {"save": 0, "validate": 0, "sample": 0},
    }))
    .unwrap();
    recipe.objective = Objective::Guided(GuidedObjective {
        lowest,
        highest,
        ..GuidedObjective::default()
    });
    recipe
}

/// A fresh student with a new embedding has the velocity without guidance, so that its loss is `(w - 1)²`
/// times the mean square of the difference that the prompt makes.
#[test]
fn the_loss_of_a_fresh_student_is_that_of_the_guidance_it_lacks() {
    let world = world(false);
    let loss = |guidance: f64| {
        let recipe = recipe(&world, &format!("run-{guidance}"), 1, guidance, guidance);
        Trainer::open(recipe, go_on).unwrap().validate().unwrap().unwrap()
    };
    let (none, two, four) = (loss(1.0), loss(2.0), loss(4.0));
    assert!(none < 1e-10 && two > 1e-6, "{none} {two}");
    assert!((four / two - 9.0).abs() < 1e-3, "{four} {two}");
}

/// A random model takes a low rate: its velocity changes by much with its weights.
#[test]
fn a_new_embedding_learns_the_guidance_and_is_written_with_the_model() {
    let world = world(false);
    let mut recipe = recipe(&world, "run", 40, 1.0, 5.0);
    recipe.data.batch = 4;
    let mut trainer = Trainer::open(recipe.clone(), go_on).unwrap();
    let before = trainer.validate().unwrap().unwrap();
    trainer.run(go_on).unwrap();
    let after = trainer.validate().unwrap().unwrap();
    println!(
        "held-out loss {before:.3e} before, {after:.3e} after: {:.3}",
        after / before
    );
    assert!(after < 0.8 * before, "{before} before, {after} after");
    // The base model has no embedding, the student's guidance has an effect.
    let pipe = Pipeline::builder().device(Device::Cpu);
    let pipe = pipe
        .transformer(recipe.out.join("transformer"))
        .load(world.path("model"))
        .unwrap();
    let image = RgbImage::from_pixel(SIDE, SIDE, Rgb([200, 40, 30]));
    let edit = |guidance: f64| {
        let request = Request::edit(image.clone(), "make it blue")
            .seed(1)
            .steps(1)
            .guidance(guidance);
        let mut last = None;
        pipe.run_with(&request, |event| {
            if let kontext::Event::Step { latents, .. } = event {
                last = Some(latents.copy());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        last.unwrap()
    };
    assert!(!edit(1.0).equal(&edit(5.0)));
    let whole = world.path("assembled");
    kontext_train::assemble(&world.path("model"), &recipe.out, &whole, Kind::Float).unwrap();
    let student = Base::open(&whole).unwrap();
    assert!(student.config.guidance_embed);
    let embedding = |base: &Base| {
        let tensors = base.transformer_tensors().unwrap();
        tensors
            .iter()
            .filter(|(name, _)| name.starts_with("guidance_in."))
            .count()
    };
    assert_eq!(embedding(&student), 4);
}

#[test]
fn adapters_take_an_embedding_that_the_model_has() {
    let lora = Method::Lora(LoraMethod {
        rank: 2,
        ..LoraMethod::default()
    });
    let without = world(false);
    let mut recipe = recipe(&without, "run", 1, 1.0, 5.0);
    recipe.method = lora.clone();
    let error = recipe.check().unwrap_err().to_string();
    assert!(error.contains("invalid method.kind: expected \"full\""), "{error}");
    let with = world(true);
    let recipe = |out: &str| {
        let mut recipe = self::recipe(&with, out, 4, 1.0, 5.0);
        (recipe.method, recipe.data.accumulate) = (lora.clone(), 2);
        recipe
    };
    let (unbroken, broken) = (recipe("unbroken"), recipe("broken"));
    train(&unbroken).unwrap();
    let stop = |event: TrainEvent<'_>| match event {
        TrainEvent::Step(report) if report.step == 2 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let stopped = Trainer::open(broken.clone(), go_on).unwrap().run(stop);
    assert!(stopped.unwrap_err().is_cancelled());
    train(&broken).unwrap();
    let state = |recipe: &Recipe| Weights::open(recipe.out.join("state.safetensors")).unwrap();
    let (unbroken, broken) = (state(&unbroken), state(&broken));
    for name in unbroken.names() {
        assert!(
            unbroken.raw(&name).unwrap().equal(&broken.raw(&name).unwrap()),
            "{name}"
        );
    }
}
