//! Settings of a recipe without effect: each is refused or warned of, before any work. docs/options.md has the table.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod world;

use std::ops::ControlFlow;

use image::{Rgb, RgbImage};
use kontext_train::{
    AdversarialObjective, AutoencoderRecipe, Method, Objective, Recipe, RecipeWarning, TextRecipe, TrainEvent, Trainer,
};
use serde_json::{Value, json};
use world::{SIDE, World, train};

/// A model, and a pair of images in either split.
fn world(model_guides: bool) -> World {
    let world = World::new(1, 8);
    if !model_guides {
        let config = world.path("model/transformer/config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let mut config_json: Value = serde_json::from_str(&text).unwrap();
        config_json["guidance_embeds"] = json!(false);
        std::fs::write(&config, config_json.to_string()).unwrap();
    }
    for name in ["a.png", "b.png"] {
        world.image(name, &RgbImage::from_pixel(SIDE, SIDE, Rgb([90, 80, 200])));
    }
    world.metadata(["train", "test"].map(line));
    world
}

fn line(split: &str) -> Value {
    json!({"source": "a.png", "target": "b.png", "instruction": "make it red", "category": "local/hair", "split": split})
}

fn recipe(world: &World) -> Recipe {
    serde_json::from_value(json!({
        "model": world.path("model"), "out": world.path("run"), "steps": 4, "device": "cpu",
        "data": {"folder": world.path("data"), "batch": 1, "weights": {"local": 2.0}},
        "rate": {"warmup": 3},
        "objective": {"guidance": 2.0, "drop_prompt": 0.1, "drop_context": 0.1},
    }))
    .unwrap()
}

/// Checks that the recipe has these warnings, and that they are the first events of its run.
fn warned(recipe: &Recipe, expected: &[RecipeWarning]) {
    assert_eq!(recipe.check().unwrap(), expected);
    let mut warnings = Vec::new();
    let stopped = Trainer::open(recipe.clone(), |event| match event {
        TrainEvent::Warning(warning) => {
            warnings.push(warning.clone());
            ControlFlow::Continue(())
        }
        _ => ControlFlow::Break(()),
    });
    assert!(stopped.unwrap_err().is_cancelled());
    assert_eq!(warnings, expected);
}

#[test]
fn a_recipe_whose_settings_have_an_effect_has_no_warning() {
    let world = world(true);
    warned(&recipe(&world), &[]);
    assert!(AutoencoderRecipe::default().warnings().is_empty());
    assert!(TextRecipe::default().warnings().is_empty());
}

#[test]
fn a_run_that_ends_with_its_warm_up_is_warned_of() {
    let world = world(true);
    let mut recipe = recipe(&world);
    for (warmup, steps) in [(4, 4), (100, 3)] {
        (recipe.rate.warmup, recipe.steps) = (warmup, steps);
        let warning = RecipeWarning::OnlyWarmup { warmup, steps };
        warned(&recipe, std::slice::from_ref(&warning));
        assert!(
            warning
                .to_string()
                .starts_with(&format!("rate.warmup is {warmup} and the run has {steps} steps"))
        );
        let (rate, accept_changes) = (recipe.rate, Vec::new());
        let autoencoder = AutoencoderRecipe {
            rate,
            steps,
            accept_changes,
            ..AutoencoderRecipe::default()
        };
        assert_eq!(autoencoder.warnings(), std::slice::from_ref(&warning));
        let text = TextRecipe {
            rate,
            steps,
            ..TextRecipe::default()
        };
        assert_eq!(text.warnings(), [warning]);
    }
}

#[test]
fn guidance_for_a_model_without_its_embedding_is_warned_of_unless_it_is_the_default() {
    let world = world(false);
    // Its tensors are left in the file: only headers are read here.
    let mut recipe = recipe(&world);
    assert_eq!(
        recipe.check().unwrap(),
        [RecipeWarning::GuidanceIgnored { guidance: 2.0 }]
    );
    recipe.objective = Objective::default();
    assert_eq!(recipe.check().unwrap(), []);
}

#[test]
fn settings_of_a_critic_that_is_not_trained_are_warned_of() {
    let world = world(true);
    let mut recipe = recipe(&world);
    let objective = AdversarialObjective {
        adversarial_weight: 0.0,
        mse_weight: 1.0,
        ..AdversarialObjective::default()
    };
    let adversarial = |objective: &AdversarialObjective| Objective::Adversarial(Box::new(objective.clone()));
    recipe.objective = adversarial(&objective);
    warned(&recipe, &[]);
    let mut changed = AdversarialObjective {
        head_width: 16,
        r1: 0.0,
        r1_every: 8,
        ..objective
    };
    let warning = |fields: &[&'static str], weight| RecipeWarning::CriticIgnored {
        fields: fields.to_vec(),
        weight,
    };
    recipe.objective = adversarial(&changed);
    let fields = ["objective.head_width", "objective.r1", "objective.r1_every"];
    warned(&recipe, &[warning(&fields, "objective.adversarial_weight")]);
    changed.adversarial_weight = 1.0;
    recipe.objective = adversarial(&changed);
    let expected = warning(&["objective.r1_every"], "objective.r1");
    warned(&recipe, std::slice::from_ref(&expected));
    assert!(
        expected
            .to_string()
            .starts_with("objective.r1_every without effect: objective.r1 is 0;")
    );
}

#[test]
fn shares_of_no_warm_up_are_warned_of() {
    let world = world(true);
    let mut recipe = recipe(&world);
    let objective = |warmup, warmup_shares: &[f64]| {
        Objective::Adversarial(Box::new(AdversarialObjective {
            warmup,
            warmup_shares: warmup_shares.to_vec(),
            ..AdversarialObjective::default()
        }))
    };
    recipe.objective = objective(0, &[0.0, 0.0, 0.5, 0.5]);
    warned(&recipe, &[]);
    recipe.objective = objective(0, &[1.0]);
    warned(&recipe, &[RecipeWarning::WarmupSharesIgnored]);
    recipe.objective = objective(1, &[0.0, 0.0, 0.0, 1.0]);
    warned(&recipe, &[]);
}

#[test]
fn dropping_references_or_prompts_that_no_example_has_is_warned_of() {
    let world = world(true);
    let recipe = recipe(&world);
    // Held-out examples are not dropped.
    let mut plain = line("train");
    plain.as_object_mut().unwrap().remove("source");
    world.metadata([plain.clone(), line("test")]);
    warned(&recipe, &[RecipeWarning::DropContextIgnored]);
    plain["instruction"] = "".into();
    world.metadata([plain, line("test")]);
    warned(
        &recipe,
        &[RecipeWarning::DropContextIgnored, RecipeWarning::DropPromptIgnored],
    );
}

#[test]
fn a_weight_of_no_category_is_warned_of_also_if_a_longer_one_hides_it() {
    let world = world(true);
    let mut recipe = recipe(&world);
    let ignored = |prefix: &str| RecipeWarning::WeightIgnored {
        prefix: prefix.to_owned(),
    };
    recipe.data.weights.insert("global".to_owned(), 2.0);
    warned(&recipe, &[ignored("global")]);
    recipe.data.weights.insert("local/h".to_owned(), 2.0);
    warned(&recipe, &[ignored("global"), ignored("local")]);
}

#[test]
fn intervals_without_held_out_examples_are_warned_of_and_write_nothing() {
    let world = world(true);
    world.metadata([line("train"), line("other")]);
    let mut recipe = recipe(&world);
    let split = "test".to_owned();
    warned(&recipe, &[RecipeWarning::NothingHeldOut { split }]);
    (recipe.every.validate, recipe.every.sample) = (1, 1);
    train(&recipe).unwrap();
    let samples = std::fs::read_dir(&recipe.out).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("samples")
    });
    assert_eq!(samples.count(), 0);
    (recipe.every.validate, recipe.every.sample) = (0, 0);
    warned(&recipe, &[]);
}

#[test]
fn what_never_has_an_effect_is_refused() {
    let world = world(true);
    let refused = |change: &dyn Fn(&mut Recipe), words: &str| {
        let mut recipe = recipe(&world);
        change(&mut recipe);
        let error = recipe.check().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(
        &|r| (r.method, r.optimizer.muon) = (Method::Lora(kontext_train::LoraMethod::default()), true),
        "invalid optimizer.muon: expected method.kind = \"full\", got set next to method.kind = \"lora\"",
    );
    let mut of_autoencoder = AutoencoderRecipe::default();
    of_autoencoder.optimizer.muon = true;
    assert_eq!(
        of_autoencoder.validate().unwrap_err().to_string(),
        "invalid optimizer.muon: expected false: it updates only the blocks of a transformer, got true"
    );
    for name in ["model", "data.folder", "data.cache", "every.save", "recompute"] {
        refused(
            &|r| r.accept_changes = vec![name.to_owned()],
            &format!("`{name}`, which may always differ; leave it out"),
        );
    }
    for name in ["rate.peek", "images", "data.weight", ""] {
        refused(
            &|r| r.accept_changes = vec![name.to_owned()],
            &format!("`{name}`, which names none"),
        );
    }
    for name in [
        "data.weights.local",
        "data.weights.gone",
        "objective.density.std",
        "data files",
        "data",
    ] {
        let mut recipe = recipe(&world);
        recipe.accept_changes = vec![name.to_owned()];
        recipe.check().unwrap();
    }
}

#[test]
fn the_key_resume_of_earlier_recipes_is_read() {
    let text = "model = 'm'\nout = 'o'\nsteps = 10\nresume = ['steps']\n[data]\nfolder = 'd'\n";
    let recipe: Recipe = toml::from_str(text).unwrap();
    assert_eq!(recipe.accept_changes, ["steps"]);
    let recipe: AutoencoderRecipe = toml::from_str("resume = ['steps']").unwrap();
    assert_eq!(recipe.accept_changes, ["steps"]);
}

#[test]
fn prompts_that_an_encoder_does_not_see_whole_are_reported_in_every_run() {
    let world = world(true);
    let prompt = |instruction: &str| {
        let mut line = line("train");
        line["instruction"] = instruction.into();
        line
    };
    let long = "red ".repeat(99);
    world.metadata([
        prompt("a \u{6f22}"),
        prompt(&long),
        prompt(&format!("{long}hat")),
        prompt("red"),
    ]);
    let recipe = recipe(&world);
    for _ in 0..2 {
        let mut unseen = Vec::new();
        Trainer::open(recipe.clone(), |event| {
            if let TrainEvent::Unseen(prompts) = event {
                unseen.push(prompts.to_string());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        for words in [
            "T5 does not know all words of 1 prompt(s) of the data; the first is “a \u{6f22}”, without “\u{6f22}”",
            "T5 does not see the end of 2 prompt(s) of the data; the first is “red red",
            "CLIP does not see the end of 2 prompt(s) of the data; the first is “red red",
        ] {
            assert!(
                unseen.iter().any(|text| text.starts_with(words)),
                "{words}: {unseen:#?}"
            );
        }
    }
}
