//! Runs that end at any renaming of a file, diverge, or go on under another recipe: their folder is that of an
//! unbroken run in the end, or they are refused.
//!
//! A kill is an abort of a child process, this test program itself; a full disk is an error of the renaming.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use image::{Rgb, RgbImage};
use kontext::{Device, Kind, Layout, ModelDefaults};
use kontext_core::{Error, failpoint};
use kontext_nn::Weights;
use kontext_train::{AutoencoderRecipe, AutoencoderTrainer, Base, LoraMethod, Method, Recipe, TrainEvent, Trainer};
use serde_json::json;
use tempfile::TempDir;

const SIDE: u32 = 32;
const STEPS: u64 = 4;

/// A model, four pairs of images, and the folder of a run.
struct World(TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        kontext::random_model(world.path("model"), 7, Layout::Diffusers).unwrap();
        let defaults = ModelDefaults {
            sizes: Some(vec![[SIDE, SIDE]]),
            steps: Some(2),
            max_sequence_length: Some(8),
            ..ModelDefaults::default()
        };
        defaults.save(world.path("model")).unwrap();
        std::fs::create_dir(world.path("data")).unwrap();
        let mut lines = String::new();
        for n in 0..4_u8 {
            for (name, colour) in [("source", [200, 40 * n, 30]), ("target", [30, 40 * n, 200])] {
                let image = RgbImage::from_pixel(SIDE, SIDE, Rgb(colour));
                image.save(world.path(&format!("data/{n}-{name}.png"))).unwrap();
            }
            let line = json!({
                "source": format!("{n}-source.png"), "target": format!("{n}-target.png"),
                "instruction": "make it blue", "split": if n == 0 { "test" } else { "train" },
            });
            lines.push_str(&format!("{line}\n"));
        }
        std::fs::write(world.path("data/metadata.jsonl"), lines).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A LoRA's recipe that saves at every `save` steps, and validates and samples after the third.
    fn recipe(&self, save: u64) -> Recipe {
        let mut recipe: Recipe = serde_json::from_value(json!({
            "model": self.path("model"), "out": self.path("run"), "steps": STEPS, "device": "cpu", "ema": 0.5,
            "data": {"folder": self.path("data"), "cache": self.path("cache"), "batch": 2, "validation_items": 1},
            "rate": {"peak": 2e-3, "warmup": 1, "floor": 0.1},
            "every": {"save": save, "validate": 3, "sample": 3},
        }))
        .unwrap();
        recipe.method = Method::Lora(LoraMethod {
            rank: 2,
            targets: vec!["double_blocks.*.img_attn.qkv".to_owned()],
            ..LoraMethod::default()
        });
        recipe
    }
}

fn go_on(_: TrainEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Trains to the end, resumed or not.
fn train(recipe: &Recipe) -> kontext_core::Result<()> {
    Trainer::open(recipe.clone(), go_on)?.run(go_on)
}

/// Returns the bytes of all files below a folder, by path, without the temporary ones of killed programs.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
            if path.is_dir() {
                folders.push(path);
            } else if !hidden {
                files.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
    }
    files
}

fn reason(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Calls `at` before renaming number `number` below `folder`, from 1, and counts them.
fn before_renaming(
    folder: &Path,
    number: u64,
    at: impl Fn() -> std::io::Result<()> + Send + 'static,
) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    failpoint::set(folder, move |_| {
        let now = counter.fetch_add(1, Ordering::SeqCst) + 1;
        if now >= number { at() } else { Ok(()) }
    });
    count
}

/// The steps of the run's state, and the lines of its curve.
fn progress(recipe: &Recipe) -> Option<(u64, u64)> {
    let state = recipe.out.join("state.safetensors");
    let state = state.is_file().then(|| Weights::open(state).unwrap())?;
    let csv = std::fs::read_to_string(recipe.out.join("curve.csv")).unwrap();
    Some((
        state.store().metadata()["step"].parse().unwrap(),
        csv.lines().count() as u64 - 1,
    ))
}

/// Ends a run at each of its renamings, by `stop(number)`, and resumes it: each time, the files are in the end those
/// of an unbroken run.
fn ends_at_every_renaming(recipe: &Recipe, stop: impl Fn(&Recipe, u64)) {
    let count = before_renaming(&recipe.out, u64::MAX, || Ok(()));
    train(recipe).unwrap();
    failpoint::clear(&recipe.out);
    let (count, unbroken) = (count.load(Ordering::SeqCst), files(&recipe.out));
    let saves = STEPS.checked_div(recipe.every.save).unwrap_or(1);
    assert!(count >= 4 * saves, "{count} renamings in {saves} saves");
    for number in 1..=count {
        std::fs::remove_dir_all(&recipe.out).unwrap();
        stop(recipe, number);
        let stopped = files(&recipe.out);
        assert!(
            stopped.len() < unbroken.len() || stopped != unbroken,
            "renaming {number} was made"
        );
        // The curve on disk holds the steps of the state, or those of the next one.
        if let Some((step, lines)) = progress(recipe) {
            assert!(lines >= step, "renaming {number}: {lines} lines at step {step}");
        }
        let trainer = Trainer::open(recipe.clone(), go_on).unwrap();
        assert!(trainer.step() < STEPS, "renaming {number}");
        if let Some((step, lines)) = progress(recipe) {
            assert_eq!((trainer.step(), lines), (step, step), "renaming {number}");
        }
        drop(trainer);
        train(recipe).unwrap();
        let resumed = files(&recipe.out);
        assert_eq!(resumed.keys().collect::<Vec<_>>(), unbroken.keys().collect::<Vec<_>>());
        for (path, bytes) in &resumed {
            assert!(
                *bytes == unbroken[path],
                "renaming {number}: {} differs",
                path.display()
            );
        }
    }
}

/// A full disk: no renaming is made from this one on.
fn full_disk(recipe: &Recipe, number: u64) {
    before_renaming(&recipe.out, number, || Err(ErrorKind::StorageFull.into()));
    let error = train(recipe).unwrap_err();
    failpoint::clear(&recipe.out);
    assert_eq!(reason(&error), "the disk is full; free some space");
}

/// A kill: a child process trains and aborts before the renaming.
fn kill(recipe: &Recipe, number: u64) {
    let path = recipe.out.with_extension("toml");
    std::fs::write(&path, recipe.to_toml().unwrap()).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_that_is_killed", "--ignored"])
        .env("KILLED_RECIPE", &path)
        .env("KILLED_AT", number.to_string())
        .env("OMP_NUM_THREADS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!child.success(), "renaming {number} was not reached");
}

#[test]
#[ignore = "the child process of other tests"]
fn a_child_that_is_killed() {
    let (Ok(path), Ok(number)) = (std::env::var("KILLED_RECIPE"), std::env::var("KILLED_AT")) else {
        return;
    };
    let recipe = Recipe::open(path).unwrap();
    before_renaming(&recipe.out, number.parse().unwrap(), || std::process::abort());
    train(&recipe).unwrap();
}

#[test]
fn a_lora_killed_at_every_renaming_ends_with_the_files_of_an_unbroken_run() {
    let world = World::new();
    ends_at_every_renaming(&world.recipe(2), kill);
}

#[test]
fn a_transformer_killed_at_every_renaming_ends_with_the_files_of_an_unbroken_run() {
    let world = World::new();
    let mut recipe = world.recipe(0);
    recipe.method = Method::Full;
    ends_at_every_renaming(&recipe, kill);
}

#[test]
fn a_run_out_of_disk_at_every_renaming_says_so_and_ends_with_the_files_of_an_unbroken_run() {
    let world = World::new();
    for save in [0, 1, 3] {
        for method in [world.recipe(0).method, Method::Full] {
            let mut recipe = world.recipe(save);
            recipe.method = method;
            ends_at_every_renaming(&recipe, full_disk);
            std::fs::remove_dir_all(&recipe.out).unwrap();
        }
    }
}

#[test]
fn a_cache_that_was_not_written_whole_is_completed() {
    let world = World::new();
    let mut recipe = world.recipe(0);
    let count = before_renaming(&world.path("cache"), u64::MAX, || Ok(()));
    train(&recipe).unwrap();
    let unbroken = files(&recipe.out);
    let count = count.load(Ordering::SeqCst);
    assert!(count >= 2, "{count} files in the cache");
    for number in 1..=count {
        for folder in ["cache", "run"] {
            std::fs::remove_dir_all(world.path(folder)).unwrap();
        }
        before_renaming(&world.path("cache"), number, || Err(ErrorKind::StorageFull.into()));
        let error = train(&recipe).unwrap_err();
        failpoint::clear(&world.path("cache"));
        assert_eq!(reason(&error), "the disk is full; free some space");
        train(&recipe).unwrap();
        assert!(files(&recipe.out) == unbroken, "renaming {number}");
    }
    // Another place of the cache is no change of the recipe.
    recipe.data.cache = Some(world.path("other"));
    assert_eq!(Trainer::open(recipe, go_on).unwrap().step(), STEPS);
}

#[test]
fn a_run_cancelled_after_any_step_ends_with_the_files_of_an_unbroken_run() {
    let world = World::new();
    let recipe = world.recipe(0);
    train(&recipe).unwrap();
    let unbroken = files(&recipe.out);
    // The third step and the last one are cancelled before they are validated and sampled, or while they are.
    for stop in [
        "step 1",
        "step 3",
        "validated 3",
        "sampled 3",
        "step 4",
        "validated 4",
        "sampled 4",
    ] {
        std::fs::remove_dir_all(&recipe.out).unwrap();
        let mut trainer = Trainer::open(recipe.clone(), go_on).unwrap();
        let result = trainer.run(|event| {
            let name = match event {
                TrainEvent::Step(report) => format!("step {}", report.step),
                TrainEvent::Validated { step, .. } => format!("validated {step}"),
                TrainEvent::Sampled { step, .. } => format!("sampled {step}"),
                _ => String::new(),
            };
            if name == stop {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(result.unwrap_err().is_cancelled(), "{stop}");
        train(&recipe).unwrap();
        let resumed = files(&recipe.out);
        assert_eq!(
            resumed.keys().collect::<Vec<_>>(),
            unbroken.keys().collect::<Vec<_>>(),
            "{stop}"
        );
        for (path, bytes) in &resumed {
            assert!(*bytes == unbroken[path], "{stop}: {} differs", path.display());
        }
    }
}

#[test]
fn a_complete_run_writes_a_lost_result_again() {
    let world = World::new();
    let recipe = world.recipe(0);
    train(&recipe).unwrap();
    let unbroken = files(&recipe.out);
    for name in ["lora.safetensors", "curve.csv", "curve.svg"] {
        std::fs::remove_file(recipe.out.join(name)).unwrap();
        train(&recipe).unwrap();
        assert!(files(&recipe.out) == unbroken, "{name}");
    }
    // As a version left it that wrote the result after the state, and was killed in between.
    std::fs::write(recipe.out.join("lora.safetensors"), "of an earlier step").unwrap();
    train(&recipe).unwrap();
    assert!(files(&recipe.out) == unbroken);
}

#[test]
fn a_diverging_run_keeps_the_last_good_state_and_goes_on_from_it_at_a_lower_rate() {
    let world = World::new();
    for method in [world.recipe(1).method, Method::Full] {
        let mut recipe = world.recipe(1);
        (recipe.every.validate, recipe.rate.warmup, recipe.method) = (1, 0, method);
        recipe.steps = 2;
        train(&recipe).unwrap();
        let good = files(&recipe.out);
        (recipe.steps, recipe.resume) = (4, vec!["steps".to_owned(), "rate".to_owned()]);
        // The first gives values whose loss is not finite, the others values that are not.
        for peak in [1e25, 1e300, 1e308] {
            recipe.rate.peak = peak;
            let error = train(&recipe).unwrap_err();
            assert!(matches!(error, Error::NotFinite { .. }), "{error}");
            let words = error.to_string();
            assert!(
                words.contains("training step 3") && words.contains("lower rate.peak"),
                "{words}"
            );
            assert!(files(&recipe.out) == good, "rate {peak}");
        }
        recipe.rate.peak = 1e-4;
        let mut trainer = Trainer::open(recipe.clone(), go_on).unwrap();
        assert_eq!(trainer.step(), 2);
        trainer.run(go_on).unwrap();
        assert_eq!(progress(&recipe), Some((4, 4)));
        std::fs::remove_dir_all(&recipe.out).unwrap();
    }
}

#[test]
fn a_run_that_diverges_at_once_leaves_no_state() {
    let world = World::new();
    let mut recipe = world.recipe(1);
    (recipe.rate.peak, recipe.rate.warmup) = (1e25, 0);
    for moments in [(0.9, 0.95), (0.0, 0.0)] {
        (recipe.optimizer.beta1, recipe.optimizer.beta2) = moments;
        assert!(matches!(train(&recipe), Err(Error::NotFinite { .. })));
        assert!(files(&recipe.out).is_empty());
    }
    // Without a state, another recipe is no change of one.
    recipe.rate.peak = 1e-4;
    train(&recipe).unwrap();
}

#[test]
fn a_result_is_not_exported_of_a_run_that_failed() {
    let world = World::new();
    let mut recipe = world.recipe(0);
    (recipe.rate.peak, recipe.rate.warmup) = (1e308, 0);
    let mut trainer = Trainer::open(recipe.clone(), go_on).unwrap();
    trainer.run(go_on).unwrap_err();
    assert!(matches!(trainer.export(), Err(Error::NotFinite { .. })));
    assert!(files(&recipe.out).is_empty());
}

#[test]
fn a_changed_recipe_is_refused_with_the_fields_that_differ() {
    let world = World::new();
    let recipe = world.recipe(2);
    train(&recipe).unwrap();
    let before = files(&recipe.out);
    type Change = fn(&mut Recipe);
    let changes: [(&str, Change); 12] = [
        ("seed", |r| r.seed = 1),
        ("rate.peak", |r| r.rate.peak = 1e-3),
        ("rate.warmup", |r| r.rate.warmup = 2),
        ("data.batch", |r| r.data.batch = 1),
        ("data.accumulate", |r| r.data.accumulate = 2),
        ("data.sizes", |r| r.data.sizes = Some(vec![[SIDE, SIDE]])),
        ("data.weights.a", |r| r.data.weights.extend([("a".to_owned(), 2.0)])),
        ("steps", |r| r.steps = 6),
        ("ema", |r| r.ema = 0.25),
        ("clip", |r| r.clip = 2.0),
        ("optimizer.weight_decay", |r| r.optimizer.weight_decay = 0.0),
        ("objective.drop_prompt", |r| r.objective.drop_prompt = 0.5),
    ];
    for (field, change) in changes {
        let mut changed = recipe.clone();
        change(&mut changed);
        let error = reason(&Trainer::open(changed.clone(), go_on).unwrap_err());
        assert!(
            error.contains(&format!("it is of another recipe: {field} was ")),
            "{error}"
        );
        assert!(error.contains(&format!("`resume = [\"{field}\"]`")), "{error}");
        assert!(files(&recipe.out) == before, "{field}");
        changed.resume = vec![field.to_owned()];
        assert_eq!(Trainer::open(changed, go_on).unwrap().step(), STEPS, "{field}");
    }
    let mut changed = recipe.clone();
    changed.method = world.recipe(0).method;
    if let Method::Lora(lora) = &mut changed.method {
        lora.alpha = Some(4.0);
    }
    changed.resume = vec!["method".to_owned()];
    let error = reason(&Trainer::open(changed, go_on).unwrap_err());
    assert!(
        error.contains("method.alpha was not set and is 4.0; these cannot change"),
        "{error}"
    );
    let mut fewer = recipe.clone();
    (fewer.steps, fewer.resume) = (2, vec!["steps".to_owned()]);
    let error = reason(&Trainer::open(fewer, go_on).unwrap_err());
    assert!(error.contains("it has 4 steps and the recipe 2"), "{error}");
}

#[test]
fn what_leaves_the_values_as_they_are_may_change() {
    let world = World::new();
    let recipe = world.recipe(2);
    train(&recipe).unwrap();
    for name in ["model", "data", "run"] {
        std::fs::rename(world.path(name), world.path(&format!("moved-{name}"))).unwrap();
    }
    let mut moved = recipe;
    (moved.model, moved.data.folder) = (world.path("moved-model"), world.path("moved-data"));
    (moved.out, moved.data.cache) = (world.path("moved-run"), None);
    (moved.every.save, moved.every.sample, moved.every.validate) = (1, 0, 7);
    (moved.recompute, moved.data.validation_items, moved.device) = (true, 9, None);
    moved.device = Some("cpu".to_owned());
    assert_eq!(Trainer::open(moved, go_on).unwrap().step(), STEPS);
}

#[test]
fn other_data_and_another_model_are_refused() {
    let world = World::new();
    let mut recipe = world.recipe(2);
    train(&recipe).unwrap();
    let image = RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
    image.save(world.path("data/1-target.png")).unwrap();
    let error = reason(&Trainer::open(recipe.clone(), go_on).unwrap_err());
    assert!(error.contains("data was 4 examples of digest "), "{error}");
    recipe.resume = vec!["data".to_owned()];
    Trainer::open(recipe.clone(), go_on).unwrap();

    kontext::random_model(world.path("model"), 8, Layout::Diffusers).unwrap();
    let error = reason(&Trainer::open(recipe.clone(), go_on).unwrap_err());
    assert!(
        error.contains("model was ") && error.contains("`resume = [\"model\"]`"),
        "{error}"
    );
}

#[test]
fn a_state_of_values_that_are_not_finite_is_refused() {
    let world = World::new();
    let recipe = world.recipe(2);
    train(&recipe).unwrap();
    let path = recipe.out.join("state.safetensors");
    let state = Weights::open(&path).unwrap();
    let text = state.store().metadata().into_iter().collect();
    let damaged = |name: &String| {
        let value = state.raw(name).unwrap();
        (
            name.clone(),
            if name == "optimizer.mean" {
                value * f64::NAN
            } else {
                value
            },
        )
    };
    let tensors: Vec<_> = state.names().iter().map(damaged).collect();
    kontext_formats::save(&path, &tensors, Some(text)).unwrap();
    let error = reason(&Trainer::open(recipe, go_on).unwrap_err());
    assert!(
        error.contains("NaN or infinity") && error.contains("start in another folder"),
        "{error}"
    );
}

#[test]
fn an_autoencoder_ends_with_the_files_of_an_unbroken_run_or_is_refused() {
    let world = World::new();
    let images: Vec<PathBuf> = (0..3).map(|n| world.path(&format!("data/{n}-source.png"))).collect();
    let out = world.path("autoencoder");
    let mut recipe = AutoencoderRecipe {
        channels: [8; 4],
        groups: 4,
        batch: 2,
        crop: 16,
        steps: 4,
        save: 2,
        ..AutoencoderRecipe::default()
    };
    let train = |recipe: &AutoencoderRecipe, images: &[PathBuf]| {
        let mut trainer = AutoencoderTrainer::open(recipe.clone(), images, &out, Device::Cpu)?;
        trainer.run(|_| ControlFlow::Continue(()))
    };
    train(&recipe, &images).unwrap();
    let unbroken = files(&out);
    for number in 1..=2 {
        std::fs::remove_dir_all(&out).unwrap();
        before_renaming(&out, number, || Err(ErrorKind::StorageFull.into()));
        assert_eq!(
            reason(&train(&recipe, &images).unwrap_err()),
            "the disk is full; free some space"
        );
        failpoint::clear(&out);
        train(&recipe, &images).unwrap();
        assert!(files(&out) == unbroken, "renaming {number}");
    }
    let error = reason(&train(&recipe, &images[..2]).unwrap_err());
    assert!(error.contains("images was 3 images of digest"), "{error}");
    recipe.seed = 1;
    let error = reason(&train(&recipe, &images).unwrap_err());
    assert!(error.contains("seed was 0 and is 1"), "{error}");
    (recipe.seed, recipe.latent_channels, recipe.resume) = (0, 8, vec!["latent_channels".to_owned()]);
    let error = reason(&train(&recipe, &images).unwrap_err());
    assert!(
        error.contains("latent_channels was 16 and is 8; these cannot change"),
        "{error}"
    );
    (recipe.latent_channels, recipe.steps) = (16, 6);
    (recipe.rate.peak, recipe.rate.warmup) = (1e25, 0);
    recipe.resume = vec!["steps".to_owned(), "rate".to_owned()];
    assert!(matches!(train(&recipe, &images), Err(Error::NotFinite { .. })));
    assert!(files(&out) == unbroken);
    recipe.rate.peak = 1e-4;
    train(&recipe, &images).unwrap();
    assert!(files(&out) != unbroken);
}

#[test]
fn a_model_that_was_not_assembled_to_its_end_is_no_model() {
    let world = World::new();
    let mut recipe = world.recipe(0);
    (recipe.method, recipe.steps) = (Method::Full, 1);
    train(&recipe).unwrap();
    let (base, out) = (world.path("model"), world.path("assembled"));
    let assemble = |from: &Path| kontext_train::assemble(from, &recipe.out, &out, Kind::BFloat16);
    let count = before_renaming(&out, u64::MAX, || Ok(()));
    assemble(&base).unwrap();
    let (count, complete) = (count.load(Ordering::SeqCst), files(&out));
    // Over a model that is there already, of which no old part may be left with new ones.
    kontext::random_model(world.path("other"), 9, Layout::Diffusers).unwrap();
    for number in 1..=count {
        failpoint::clear(&out);
        assemble(&world.path("other")).unwrap();
        assert!(files(&out) != complete);
        before_renaming(&out, number, || Err(ErrorKind::StorageFull.into()));
        assert_eq!(
            reason(&assemble(&base).unwrap_err()),
            "the disk is full; free some space"
        );
        assert!(Base::open(&out).is_err(), "renaming {number}");
    }
    failpoint::clear(&out);
    assemble(&base).unwrap();
    assert!(files(&out) == complete);
    let error = kontext_train::assemble(&base, &recipe.out, &base, Kind::BFloat16).unwrap_err();
    assert!(
        error.to_string().contains("another folder than the base model"),
        "{error}"
    );
}
