//! Complete runs on a small model and drawn images: learning, written files, skipped data and resume.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod world;

use std::ops::ControlFlow;
use std::path::PathBuf;

use image::{Rgb, RgbImage};
use kontext::{Device, Layout, Lora, LoraForm, Pipeline, Request, save_part};
use kontext_core::check;
use kontext_nn::Weights;
use kontext_train::{
    Base, FlowObjective, LoraMethod, Method, Objective, Recipe, TrainEvent, Trainer, initial_transformer,
};
use serde_json::json;
use world::{SIDE, go_on};

const COLOURS: [(&str, [u8; 3]); 4] = [
    ("red", [220, 40, 40]),
    ("green", [40, 170, 60]),
    ("blue", [50, 70, 220]),
    ("black", [20, 20, 20]),
];

/// A model with a new transformer, and discs to recolour.
struct World(world::World);

impl World {
    fn new() -> Self {
        let world = Self(world::World::new(4, 16));
        let model = world.model();
        let config = Base::open(&model).unwrap().config;
        save_part::transformer(&model, initial_transformer(&config, 1).unwrap(), &config).unwrap();
        let mut lines = Vec::new();
        for place in 0..6 {
            for (name, colour) in COLOURS {
                world.0.image(&format!("{place}-{name}.png"), &disc(place, colour));
            }
            for (from, _) in COLOURS {
                for (to, _) in COLOURS.iter().filter(|(to, _)| *to != from) {
                    // Positions are held out, not colours.
                    lines.push(json!({
                        "source": format!("{place}-{from}.png"), "target": format!("{place}-{to}.png"),
                        "instruction": format!("make it {to}"), "category": "colour",
                        "split": if place == 2 { "test" } else { "train" },
                    }));
                }
            }
        }
        world.0.metadata(lines);
        world
    }

    fn model(&self) -> PathBuf {
        self.0.path("model")
    }

    fn data(&self) -> PathBuf {
        self.0.path("data")
    }

    fn recipe(&self, out: &str, steps: u64) -> Recipe {
        serde_json::from_value(json!({
            "model": self.model(), "out": self.0.path(out), "steps": steps, "device": "cpu", "ema": 0.9,
            "data": {"folder": self.data(), "batch": 8, "validation_items": 12},
            "rate": {"peak": 2e-3, "warmup": 10, "floor": 0.1},
            "every": {"save": 0, "validate": 0, "sample": 0},
        }))
        .unwrap()
    }
}

fn dropping(drop_prompt: f64, drop_context: f64) -> Objective {
    Objective::Flow(FlowObjective {
        drop_prompt,
        drop_context,
        ..FlowObjective::default()
    })
}

fn disc(place: u32, colour: [u8; 3]) -> RgbImage {
    let (cx, cy) = (8 + 3 * place as i32, 20 - 2 * place as i32);
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let inside = (x as i32 - cx).pow(2) + (y as i32 - cy).pow(2) < 60;
        Rgb(if inside { colour } else { [250, 250, 250] })
    })
}

/// Opens the state of a run.
fn state(recipe: &Recipe) -> Weights {
    Weights::open(recipe.out.join("state.safetensors")).unwrap()
}

fn same_state(a: &Recipe, b: &Recipe) {
    let (a, b) = (state(a), state(b));
    assert_eq!(a.names(), b.names());
    for name in a.names() {
        assert!(a.raw(&name).unwrap().equal(&b.raw(&name).unwrap()), "{name} differs");
    }
}

/// The factor is stated by issue and README: the held-out loss falls below half of its initial value.
/// Measured: 0.29.
#[test]
fn training_halves_the_held_out_loss_and_writes_what_it_promises() {
    let world = World::new();
    let mut recipe = world.recipe("run", 120);
    (recipe.every.save, recipe.every.validate, recipe.every.sample) = (60, 120, 120);
    let mut trainer = Trainer::open(recipe.clone(), go_on).unwrap();
    let before = trainer.validate().unwrap().unwrap();
    let (mut last, mut saved) = (f64::NAN, Vec::new());
    trainer
        .run(|event| {
            match event {
                TrainEvent::Validated { loss, .. } => last = loss,
                TrainEvent::Saved { step, .. } => saved.push(step),
                _ => {}
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(last < 0.5 * before, "held-out loss {before} before, {last} after");
    assert_eq!(saved, [60, 120]);
    let curve = std::fs::read_to_string(recipe.out.join("curve.csv")).unwrap();
    assert_eq!(curve.lines().count(), 1 + 120);
    for name in ["curve.svg", "samples-000120.png", "state.safetensors"] {
        assert!(recipe.out.join(name).is_file(), "{name}");
    }
    // The pipeline loads the result as a part.
    let pipe = Pipeline::builder()
        .device(Device::Cpu)
        .transformer(recipe.out.join("transformer"));
    let pipe = pipe.load(world.model()).unwrap();
    pipe.run(&Request::edit(disc(2, COLOURS[0].1), "make it blue").seed(1))
        .unwrap();
}

#[test]
fn a_resumed_run_gives_the_bits_of_an_unbroken_one() {
    let world = World::new();
    let recipe = |out: &str| {
        let mut recipe = world.recipe(out, 6);
        (recipe.data.accumulate, recipe.data.batch, recipe.recompute) = (2, 4, true);
        recipe.objective = dropping(0.3, 0.3);
        recipe
    };
    let unbroken = recipe("unbroken");
    Trainer::open(unbroken.clone(), go_on).unwrap().run(go_on).unwrap();
    let broken = recipe("broken");
    let stop = |event: TrainEvent<'_>| match event {
        TrainEvent::Step(report) if report.step == 3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    assert!(
        Trainer::open(broken.clone(), go_on)
            .unwrap()
            .run(stop)
            .unwrap_err()
            .is_cancelled()
    );
    let mut resumed = Trainer::open(broken.clone(), go_on).unwrap();
    assert_eq!(resumed.step(), 3);
    resumed.run(go_on).unwrap();
    same_state(&unbroken, &broken);
}

#[test]
fn a_lora_changes_the_images_alike_fused_and_beside_the_weights() {
    images_of_a_lora(false, LoraForm::LowRank);
}

#[test]
fn so_does_a_dora() {
    images_of_a_lora(true, LoraForm::Dora);
}

fn images_of_a_lora(dora: bool, form: LoraForm) {
    let world = World::new();
    let mut recipe = world.recipe("lora", 12);
    recipe.method = Method::Lora(LoraMethod {
        rank: 4,
        alpha: Some(8.0),
        dora,
        ..LoraMethod::default()
    });
    recipe.rate.peak = 2e-2;
    // Row norms are recomputed for each batch, and a piece's backward pass runs it again.
    (recipe.data.accumulate, recipe.recompute) = (2, true);
    // A new transformer outputs zero regardless of its blocks: the LoRA starts from another one.
    kontext::random_model(world.model(), 7, Layout::Diffusers).unwrap();
    Trainer::open(recipe.clone(), go_on).unwrap().run(go_on).unwrap();
    let file = recipe.out.join("lora.safetensors");
    let lora = Lora::open(&file).unwrap();
    assert_eq!(lora.len(), 12 + 2 * 5); // One double block and two single ones.
    assert_eq!(lora.facts()["steps"], "12");
    assert_eq!(lora.report().forms.keys().collect::<Vec<_>>(), [&form]);
    let image = |strength: f64, fused: bool| {
        let builder = Pipeline::builder()
            .device(Device::Cpu)
            .lora(&file, strength)
            .fuse_loras(fused);
        let mut latents = None;
        let request = Request::edit(disc(2, COLOURS[0].1), "make it blue").seed(1);
        builder
            .load(world.model())
            .unwrap()
            .run_with(&request, |event| {
                if let kontext::Event::Step { latents: now, .. } = event {
                    latents = Some(now.copy());
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        latents.unwrap()
    };
    let (beside, fused, without) = (image(1.0, false), image(1.0, true), image(0.0, false));
    let distance = check::relative_l2(&fused, &beside).unwrap();
    assert!(distance < 1e-5, "fused against beside: {distance}");
    assert!(check::relative_l2(&without, &beside).unwrap() > 1e-3);
}

#[test]
fn what_cannot_be_used_is_named_and_the_rest_is_trained_on() {
    let world = World::new();
    std::fs::write(world.data().join("0-red.png"), "no image").unwrap();
    std::fs::remove_file(world.data().join("1-blue.png")).unwrap();
    let recipe = world.recipe("run", 2);
    let mut skipped = Vec::new();
    let mut training = 0;
    let trainer = Trainer::open(recipe, |event| {
        match event {
            TrainEvent::Skipped(what) => skipped.push(what.to_string()),
            TrainEvent::Ready { training: count, .. } => training = count,
            _ => {}
        }
        ControlFlow::Continue(())
    });
    trainer.unwrap().run(go_on).unwrap();
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    assert!(skipped.iter().any(|s| s.contains("0-red.png")) && skipped.iter().any(|s| s.contains("1-blue.png")));
    // Each image is the source of three pairs and the target of three.
    assert_eq!(training, 5 * 12 - 12);
}

#[test]
fn a_state_of_another_method_is_refused() {
    let world = World::new();
    let mut recipe = world.recipe("run", 2);
    Trainer::open(recipe.clone(), go_on).unwrap().run(go_on).unwrap();
    recipe.method = Method::Lora(LoraMethod {
        rank: 2,
        ..LoraMethod::default()
    });
    let error = Trainer::open(recipe, go_on).unwrap_err();
    assert!(error.to_string().contains("state.safetensors"), "{error}");
    assert!(world.0.path("run/state.safetensors").is_file());
}

#[test]
fn an_empty_instruction_is_trained_on() {
    let world = World::new();
    let lines = ["", "", " ", "make it \u{0} red"].map(|text| {
        json!({"source": "0-red.png", "target": "0-blue.png", "instruction": text, "split": "train"}).to_string()
    });
    std::fs::write(world.data().join("metadata.jsonl"), lines.join("\n")).unwrap();
    let mut recipe = world.recipe("run", 1);
    // The empty prompt is in the data, and replaces others.
    (recipe.data.batch, recipe.objective) = (4, dropping(0.5, 0.0));
    Trainer::open(recipe.clone(), go_on).unwrap().run(go_on).unwrap();
    assert!(state(&recipe).contains("values"));
    // A second run finds every prompt in the cache.
    let mut encoded = 0;
    let count = |event: TrainEvent<'_>| {
        encoded += usize::from(matches!(event, TrainEvent::Encoding(_)));
        ControlFlow::Continue(())
    };
    Trainer::open(recipe, count).unwrap();
    assert_eq!(encoded, 0);
}
