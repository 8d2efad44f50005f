//! Runs whose values or losses are not finite.

use kontext_core::Error;
use kontext_nn::Weights;
use kontext_train::{Method, Recipe, Trainer};

use crate::world::{World, files, go_on, progress, reason, train};

/// A recipe of all of the transformer, whose loss explodes with the first bad step, and one of a LoRA, whose loss is
/// bounded by the norms of the layers above until its values overflow.
fn recipes(world: &World) -> [Recipe; 2] {
    [(Method::Full, 1), (world.recipe(1).method, 0)].map(|(method, save)| {
        let mut recipe = world.recipe(save);
        (recipe.method, recipe.steps, recipe.every.sample) = (method, 6, 0);
        (recipe.rate.warmup, recipe.rate.floor) = (0, 1.0);
        recipe
    })
}

/// Lets a run diverge: at this rate and decay, each step multiplies the values by -999.
fn diverge(recipe: &mut Recipe) {
    (recipe.rate.peak, recipe.optimizer.weight_decay) = (10.0, 100.0);
}

fn calm(recipe: &mut Recipe) {
    (recipe.rate.peak, recipe.optimizer.weight_decay) = (1e-4, 0.01);
}

fn is_diverged(result: &kontext_core::Result<()>) -> bool {
    let Err(error @ (Error::NotFinite { .. } | Error::Diverged { .. })) = result else {
        return false;
    };
    let words = error.to_string();
    words.contains("training step ")
        && words.contains(r#"lower rate.peak, and go on from the state by `accept_changes = ["rate.peak"]`"#)
}

#[test]
fn a_diverging_run_keeps_the_last_good_state_and_goes_on_from_it_at_a_lower_rate() {
    let world = World::new();
    for mut recipe in recipes(&world) {
        train(&recipe).unwrap();
        let good = files(&recipe.out);
        recipe.accept_changes = ["steps", "rate", "optimizer"].map(str::to_owned).to_vec();
        diverge(&mut recipe);
        recipe.steps = 30;
        let result = train(&recipe);
        assert!(is_diverged(&result), "{result:?}");
        assert!(files(&recipe.out) == good);
        calm(&mut recipe);
        recipe.steps = 8;
        let mut trainer = Trainer::open(recipe.clone(), go_on).unwrap();
        assert_eq!(trainer.step(), 6);
        trainer.run(go_on).unwrap();
        assert_eq!(progress(&recipe), Some((8, 8)));
        std::fs::remove_dir_all(&recipe.out).unwrap();
    }
}

#[test]
fn a_run_that_diverges_at_once_leaves_no_state_and_no_result() {
    let world = World::new();
    for mut recipe in recipes(&world) {
        diverge(&mut recipe);
        for steps in [2, 30] {
            (recipe.steps, recipe.every.validate) = (steps, 0);
            // A LoRA has not overflown after two steps.
            if steps == 2 && recipe.every.save == 0 {
                continue;
            }
            let mut trainer = Trainer::open(recipe.clone(), go_on).unwrap();
            let result = trainer.run(go_on);
            assert!(is_diverged(&result), "{result:?}");
            assert!(files(&recipe.out).is_empty());
            let again = trainer.export();
            assert!(is_diverged(&again));
            assert_eq!(again.unwrap_err().to_string(), result.unwrap_err().to_string());
            assert!(files(&recipe.out).is_empty());
        }
        // Without a state, another recipe is no change of one.
        calm(&mut recipe);
        recipe.steps = 2;
        train(&recipe).unwrap();
        std::fs::remove_dir_all(&recipe.out).unwrap();
    }
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
