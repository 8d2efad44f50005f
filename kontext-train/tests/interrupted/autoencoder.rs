//! All of this for an autoencoder.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::PathBuf;

use kontext::Device;
use kontext_core::{Error, failpoint};
use kontext_train::{AutoencoderRecipe, AutoencoderTrainer};

use crate::world::{World, before_renaming, files, reason};

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
    (recipe.latent_channels, recipe.steps) = (16, 5);
    (recipe.rate.peak, recipe.rate.warmup, recipe.rate.floor) = (10.0, 0, 1.0);
    recipe.optimizer.weight_decay = 100.0;
    recipe.resume = ["steps", "rate", "optimizer"].map(str::to_owned).to_vec();
    let result = train(&recipe, &images);
    assert!(
        matches!(result, Err(Error::NotFinite { .. } | Error::Diverged { .. })),
        "{result:?}"
    );
    assert!(files(&out) == unbroken);
    recipe.rate.peak = 1e-4;
    train(&recipe, &images).unwrap();
    assert!(files(&out) != unbroken);
}
