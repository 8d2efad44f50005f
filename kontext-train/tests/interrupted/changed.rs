//! Runs that go on under another recipe, model or data.

use image::{Rgb, RgbImage};
use kontext::Layout;
use kontext_train::{FlowObjective, Method, Objective, Recipe, Trainer};

use crate::world::{SIDE, STEPS, World, files, go_on, reason, train};

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
        ("objective.drop_prompt", |r| {
            r.objective = Objective::Flow(FlowObjective {
                drop_prompt: 0.5,
                ..FlowObjective::default()
            });
        }),
    ];
    for (field, change) in changes {
        let mut changed = recipe.clone();
        change(&mut changed);
        let error = reason(&Trainer::open(changed.clone(), go_on).unwrap_err());
        assert!(
            error.contains(&format!("it is of another recipe: {field} was ")),
            "{error}"
        );
        assert!(error.contains(&format!("`accept_changes = [\"{field}\"]`")), "{error}");
        assert_eq!(reason(&changed.check().unwrap_err()), error);
        assert!(files(&recipe.out) == before, "{field}");
        changed.accept_changes = vec![field.to_owned()];
        assert_eq!(Trainer::open(changed, go_on).unwrap().step(), STEPS, "{field}");
    }
    let mut changed = recipe.clone();
    changed.method = world.recipe(0).method;
    if let Method::Lora(lora) = &mut changed.method {
        lora.alpha = Some(4.0);
    }
    let error = reason(&changed.check().unwrap_err());
    assert!(
        error.contains("method.alpha was not set and is 4.0; these cannot change"),
        "{error}"
    );
    changed.accept_changes = vec!["method".to_owned()];
    let error = changed.check().unwrap_err().to_string();
    assert!(
        error.contains("got `method`, which cannot change within a run"),
        "{error}"
    );
    let mut fewer = recipe.clone();
    (fewer.steps, fewer.accept_changes) = (2, vec!["steps".to_owned()]);
    let error = reason(&fewer.check().unwrap_err());
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
    let error = reason(&recipe.check().unwrap_err());
    assert!(error.contains("data files was 4 examples of digest "), "{error}");
    // The fields of the table are no files.
    recipe.accept_changes = vec!["data".to_owned()];
    assert_eq!(reason(&recipe.check().unwrap_err()), error);
    recipe.accept_changes = vec!["data files".to_owned()];
    Trainer::open(recipe.clone(), go_on).unwrap();

    // The text encoders make a model another one, too.
    for (part, seed) in [("text_encoder_2", 8), ("", 9)] {
        let other = world.path("other");
        kontext::random_model(&other, seed, Layout::Diffusers).unwrap();
        for entry in std::fs::read_dir(other.join(part)).unwrap() {
            let from = entry.unwrap().path();
            let to = world.path("model").join(from.strip_prefix(&other).unwrap());
            if from.is_file() {
                std::fs::copy(from, to).unwrap();
            } else {
                std::fs::remove_dir_all(&to).unwrap();
                std::fs::rename(from, to).unwrap();
            }
        }
        let error = reason(&recipe.check().unwrap_err());
        assert!(
            error.contains("model files was ") && error.contains("`accept_changes = [\"model files\"]`"),
            "{part}: {error}"
        );
        let mut accepted = recipe.clone();
        accepted.accept_changes.push("model files".to_owned());
        accepted.check().unwrap();
    }
}
