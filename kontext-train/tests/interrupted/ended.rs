//! Runs that are killed, cancelled or out of disk.
//!
//! A kill is an abort of a child process, this test program itself; a full disk is an error of the renaming.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;

use kontext::{Kind, Layout};
use kontext_core::failpoint;
use kontext_train::{AdversarialObjective, Base, Method, Objective, Recipe, TrainEvent, Trainer};

use crate::world::{STEPS, World, before_renaming, files, go_on, killed, progress, reason, run_killed, train};

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
    run_killed("ended::a_child_that_is_killed", &path, number);
}

#[test]
#[ignore = "the child process of other tests"]
fn a_child_that_is_killed() {
    let Some((path, number)) = killed() else { return };
    let recipe = Recipe::open(path).unwrap();
    before_renaming(&recipe.out, number, || std::process::abort());
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
    cancelled_after_any_step(&world.recipe(0));
}

#[test]
fn so_does_an_adversarial_run() {
    let world = World::new();
    cancelled_after_any_step(&adversarial(&world, 0));
    ends_at_every_renaming(&adversarial(&world, 2), full_disk);
}

/// The recipe of a LoRA against a critic.
fn adversarial(world: &World, save: u64) -> Recipe {
    let mut recipe = world.recipe(save);
    recipe.out = world.path(&format!("adversarial-{save}"));
    recipe.objective = Objective::Adversarial(Box::new(AdversarialObjective {
        head_width: 8,
        warmup: 1,
        r1_every: 2,
        ..AdversarialObjective::default()
    }));
    recipe
}

fn cancelled_after_any_step(recipe: &Recipe) {
    train(recipe).unwrap();
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
        train(recipe).unwrap();
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
