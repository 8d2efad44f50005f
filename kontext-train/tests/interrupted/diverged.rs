//! Runs whose values or losses are not finite.

use kontext_core::Error;
use kontext_nn::Weights;
use kontext_train::{Method, Trainer};

use crate::world::{World, files, go_on, progress, reason, train};

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
