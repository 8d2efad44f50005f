//! All of this for an autoencoder.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use kontext::Device;
use kontext_core::{Error, Result, failpoint};
use kontext_train::{AutoencoderEvent, AutoencoderRecipe, AutoencoderTrainer};

use crate::world::{World, before_renaming, files, killed, reason, run_killed};

fn recipe() -> AutoencoderRecipe {
    AutoencoderRecipe {
        channels: [8; 4],
        groups: 4,
        batch: 2,
        crop: 16,
        steps: 4,
        save: 2,
        ..AutoencoderRecipe::default()
    }
}

fn images(world: &Path) -> Vec<PathBuf> {
    (0..3).map(|n| world.join(format!("data/{n}-source.png"))).collect()
}

/// Trains to the end, resumed or not; returns the steps of the saves.
fn train(recipe: &AutoencoderRecipe, images: &[PathBuf], out: &Path) -> Result<Vec<u64>> {
    let mut saved = Vec::new();
    let mut trainer = AutoencoderTrainer::open(recipe.clone(), images, out, Device::Cpu)?;
    trainer.run(|event| {
        if let AutoencoderEvent::Saved { step, .. } = event {
            saved.push(step);
        }
        ControlFlow::Continue(())
    })?;
    Ok(saved)
}

#[test]
#[ignore = "the child process of the next test"]
fn a_child_that_is_killed() {
    let Some((world, number)) = killed() else { return };
    let out = world.join("autoencoder");
    before_renaming(&out, number, || std::process::abort());
    train(&recipe(), &images(&world), &out).unwrap();
}

#[test]
fn an_autoencoder_killed_or_out_of_disk_at_every_renaming_ends_with_the_files_of_an_unbroken_run() {
    let world = World::new();
    let (recipe, images, out) = (recipe(), images(world.root()), world.path("autoencoder"));
    let count = before_renaming(&out, u64::MAX, || Ok(()));
    assert_eq!(train(&recipe, &images, &out).unwrap(), [2, 4]);
    failpoint::clear(&out);
    let (count, unbroken) = (count.load(Ordering::SeqCst), files(&out));
    assert_eq!(count, 2);
    for number in 1..=count {
        std::fs::remove_dir_all(&out).unwrap();
        before_renaming(&out, number, || Err(ErrorKind::StorageFull.into()));
        let error = train(&recipe, &images, &out).unwrap_err();
        assert_eq!(reason(&error), "the disk is full; free some space");
        failpoint::clear(&out);
        train(&recipe, &images, &out).unwrap();
        assert!(files(&out) == unbroken, "renaming {number}");
        std::fs::remove_dir_all(&out).unwrap();
        run_killed("autoencoder::a_child_that_is_killed", world.root(), number);
        train(&recipe, &images, &out).unwrap();
        assert!(files(&out) == unbroken, "renaming {number}");
    }
}

#[test]
fn an_autoencoder_of_another_recipe_or_other_images_is_refused() {
    let world = World::new();
    let (mut recipe, images, out) = (recipe(), images(world.root()), world.path("autoencoder"));
    train(&recipe, &images, &out).unwrap();
    let unbroken = files(&out);
    let error = reason(&train(&recipe, &images[..2], &out).unwrap_err());
    assert!(
        error.contains("image files was 3 images of digest") && error.contains(r#"`accept_changes = ["image files"]`"#),
        "{error}"
    );
    recipe.seed = 1;
    let error = reason(&train(&recipe, &images, &out).unwrap_err());
    assert!(error.contains("seed was 0 and is 1"), "{error}");
    (recipe.seed, recipe.latent_channels) = (0, 8);
    let error = reason(&train(&recipe, &images, &out).unwrap_err());
    assert!(
        error.contains("latent_channels was 16 and is 8; these cannot change"),
        "{error}"
    );
    recipe.accept_changes = vec!["latent_channels".to_owned()];
    let error = train(&recipe, &images, &out).unwrap_err().to_string();
    assert!(
        error.contains("`latent_channels`, which cannot change within a run"),
        "{error}"
    );
    assert!(files(&out) == unbroken);
}

#[test]
fn a_diverging_autoencoder_keeps_its_last_good_state() {
    let world = World::new();
    let (mut recipe, images, out) = (recipe(), images(world.root()), world.path("autoencoder"));
    train(&recipe, &images, &out).unwrap();
    let good = files(&out);
    recipe.steps = 5;
    (recipe.rate.peak, recipe.rate.warmup, recipe.rate.floor) = (10.0, 0, 1.0);
    recipe.optimizer.weight_decay = 100.0;
    recipe.accept_changes = ["steps", "rate", "optimizer"].map(str::to_owned).to_vec();
    let result = train(&recipe, &images, &out);
    assert!(
        matches!(result, Err(Error::NotFinite { .. } | Error::Diverged { .. })),
        "{result:?}"
    );
    assert!(files(&out) == good);
    // At an interval it says that it does not save.
    (recipe.steps, recipe.save) = (30, 1);
    let mut left_out = 0;
    let mut trainer = AutoencoderTrainer::open(recipe.clone(), &images, &out, Device::Cpu).unwrap();
    let result = trainer.run(|event| {
        left_out += u64::from(matches!(event, AutoencoderEvent::NotSaved { .. }));
        ControlFlow::Continue(())
    });
    assert!(result.is_err() && left_out > 0, "{result:?} {left_out}");
    assert!(files(&out) == good);
    (recipe.rate.peak, recipe.steps) = (1e-4, 5);
    train(&recipe, &images, &out).unwrap();
    assert!(files(&out) != good);
}
