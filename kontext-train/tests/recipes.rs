//! Recipes with impossible values, from files and from code: refused in words, or trained on.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Deref};
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use kontext::{Device, Error};
use kontext_train::{
    AutoencoderRecipe, AutoencoderTrainer, FlowObjective, LoraMethod, Method, Objective, Recipe, TextRecipe,
    TrainEvent, Trainer, train_text,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use toml::{Table, Value};
use world::SIDE;

/// A random model, and two pairs of images.
struct World(world::World);

impl Deref for World {
    type Target = world::World;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl World {
    fn new() -> Self {
        let world = Self(world::World::new(1, 8));
        for name in ["a.png", "b.png"] {
            world.image(name);
        }
        world.metadata(
            ["train", "test"].map(
                |split| json!({"source": "a.png", "target": "b.png", "instruction": "make it red", "split": split}),
            ),
        );
        world
    }

    fn image(&self, name: &str) -> PathBuf {
        let image = RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([8 * x as u8, 8 * y as u8, 90]));
        self.0.image(name, &image)
    }

    /// Returns a recipe with all fields set, as a file holds it.
    fn recipe(&self) -> Table {
        let text = format!(
            "model = {:?}\nout = {:?}\nsteps = 2\nseed = 1\ndevice = 'cpu'\nclip = 1.0\nema = 0.9\nrecompute = false\n\
             [method]\nkind = 'lora'\nrank = 2\nalpha = 2.0\ndora = false\ntargets = ['double_blocks.*']\n\
             default_scale = 1.5\n\
             [data]\nfolder = {:?}\ncache = {:?}\nbatch = 1\naccumulate = 1\nsizes = [[32, 32]]\nsplit = 'train'\n\
             validation = 'test'\nvalidation_items = 1\nweights = {{ '' = 1.0 }}\n\
             [objective]\nresolution_shift = true\nstratified = true\nweighting = 'none'\nguidance = 1.0\n\
             drop_prompt = 0.0\ndrop_context = 0.0\ndensity = {{ kind = 'logit-normal', mean = 0.0, std = 1.0 }}\n\
             [optimizer]\nbeta1 = 0.9\nbeta2 = 0.95\neps = 1e-8\nweight_decay = 0.01\nmuon = false\n\
             [rate]\npeak = 1e-4\nwarmup = 1\nfloor = 0.1\n\
             [every]\nsave = 0\nvalidate = 0\nsample = 0\n",
            self.path("model"),
            self.path("run"),
            self.path("data"),
            self.path("cache"),
        );
        toml::from_str(&text).unwrap()
    }
}

/// Values that no number of a recipe should have, and some that it may.
fn values() -> Vec<Value> {
    let integers = [0, -1, 1 << 31, i64::MAX, i64::MIN].map(Value::Integer);
    let floats = [0.0, -1.0, 1e-300, 1e308, f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(Value::Float);
    let lists = [vec![], vec![Value::Array(vec![])], vec![Value::Integer(0); 2]].map(Value::Array);
    let sizes = [[0, 16], [16, 1 << 31], [8, 8]]
        .map(|size| Value::Array(vec![Value::Array(size.map(Value::Integer).to_vec())]));
    let others = [
        Value::String(String::new()),
        Value::Table(Table::new()),
        Value::Boolean(true),
    ];
    let all = integers
        .into_iter()
        .chain(floats)
        .chain(lists)
        .chain(sizes)
        .chain(others);
    all.collect()
}

/// Returns the paths of all fields, those of tables before their own.
fn fields(table: &Table) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (name, value) in table {
        paths.push(vec![name.clone()]);
        let inner = value.as_table().map(fields).unwrap_or_default();
        paths.extend(inner.into_iter().map(|path| [vec![name.clone()], path].concat()));
    }
    paths
}

/// Sets a field; `None` removes it.
fn set(table: &mut Table, path: &[String], value: Option<Value>) {
    match (path, value) {
        ([name], Some(value)) => drop(table.insert(name.clone(), value)),
        ([name], None) => drop(table.remove(name)),
        ([name, rest @ ..], value) => set(table[name].as_table_mut().unwrap(), rest, value),
        ([], _) => {}
    }
}

/// Reads each mutation of a file by `open`, and passes on the last one of each field that is not refused.
/// Returns the numbers of those refused and of the others.
fn mutated<T>(good: &Table, open: impl Fn(&Path) -> Result<T, Error>, mut accepted: impl FnMut(T, &str)) -> [usize; 2] {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut counts = [0, 0];
    let mut attempt = |table: &Table, what: String| {
        std::fs::write(file.path(), toml::to_string(table).unwrap()).unwrap();
        match open(file.path()) {
            Ok(recipe) => {
                counts[1] += 1;
                Some((recipe, what))
            }
            Err(error) => {
                counts[0] += 1;
                let cause = std::error::Error::source(&error)
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(cause.len() > 10 && cause.len() < 2000, "{what}: {error}: {cause}");
                None
            }
        }
    };
    for path in fields(good) {
        let mut last = None;
        for value in [None].into_iter().chain(values().into_iter().map(Some)) {
            let mut table = good.clone();
            let what = format!("{} = {value:?}", path.join("."));
            set(&mut table, &path, value);
            last = attempt(&table, what).or(last);
        }
        if let Some((recipe, what)) = last {
            accepted(recipe, &what);
        }
    }
    let mut table = good.clone();
    table.insert("unknown".to_owned(), Value::Integer(1));
    assert!(attempt(&table, "an unknown field".to_owned()).is_none());
    counts
}

fn written<T: Serialize>(recipe: &T) -> Table {
    toml::from_str(&toml::to_string(recipe).unwrap()).unwrap()
}

/// Reads a recipe that has no `open` of its own.
fn parsed<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read_to_string(path).unwrap();
    toml::from_str(&text).map_err(|error| Error::config(path, error.to_string()))
}

#[test]
fn a_mutated_recipe_is_refused_in_words_or_trains() {
    let world = World::new();
    let mut outcomes = BTreeSet::new();
    let counts = mutated(
        &world.recipe(),
        |path| Recipe::open(path),
        |mut recipe, what| {
            // The state of another run would be resumed.
            let out = tempfile::tempdir().unwrap();
            if recipe.out == world.path("run") {
                recipe.out = out.path().to_owned();
            }
            if !recipe.out.starts_with(out.path()) || !recipe.model.starts_with(world.root()) {
                return;
            }
            let stop = |event: TrainEvent<'_>| match event {
                TrainEvent::Step(report) if report.step >= 3 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            let result = Trainer::open(recipe, |_| ControlFlow::Continue(())).and_then(|mut trainer| trainer.run(stop));
            outcomes.insert(match result {
                Ok(()) => "trained",
                Err(Error::Cancelled { .. }) => "stopped",
                Err(Error::Bug { what: bug }) => unreachable!("{what}: {bug}"),
                Err(error) => {
                    assert!(error.to_string().len() > 10, "{what}: {error}");
                    "refused"
                }
            });
        },
    );
    assert!(counts[0] > 500 && counts[1] > 20, "{counts:?}");
    assert!(outcomes.contains("trained"), "{outcomes:?}");
}

#[test]
fn a_mutated_recipe_of_an_autoencoder_is_refused_in_words_or_trains() {
    let world = World::new();
    let images = [world.image("a.png"), world.image("b.png")];
    let good = AutoencoderRecipe {
        channels: [8; 4],
        groups: 4,
        latent_channels: 4,
        batch: 1,
        crop: 16,
        size: Some([32, 32]),
        steps: 2,
        ..AutoencoderRecipe::default()
    };
    let counts = mutated(
        &written(&good),
        |path| AutoencoderRecipe::open(path),
        |recipe, what| {
            let out = tempfile::tempdir().unwrap();
            let result = AutoencoderTrainer::open(recipe, &images, out.path(), Device::Cpu)
                .and_then(|mut trainer| trainer.run(|_| ControlFlow::Break(())));
            let error = result.unwrap_err();
            assert!(!error.is_bug() && error.to_string().len() > 10, "{what}: {error}");
        },
    );
    assert!(counts[0] > 200 && counts[1] > 10, "{counts:?}");
}

#[test]
fn a_mutated_recipe_of_text_encoders_is_refused_in_words_or_trains() {
    let good = TextRecipe {
        width: 32,
        layers: 1,
        batch: 1,
        steps: 2,
        ..TextRecipe::default()
    };
    let texts = BTreeSet::from(["make it red".to_owned()]);
    let counts = mutated(&written(&good), parsed::<TextRecipe>, |recipe, what| {
        let out = tempfile::tempdir().unwrap();
        let error = train_text(&recipe, &texts, out.path(), |_| ControlFlow::Break(())).unwrap_err();
        assert!(!error.is_bug() && error.to_string().len() > 10, "{what}: {error}");
    });
    assert!(counts[0] > 50 && counts[1] > 10, "{counts:?}");
}

#[test]
fn values_from_code_are_checked_as_those_of_files() {
    let world = World::new();
    let good: Recipe = toml::from_str(&toml::to_string(&world.recipe()).unwrap()).unwrap();
    good.check().unwrap();
    let refused = |change: &dyn Fn(&mut Recipe), words: &str| {
        let mut recipe = good.clone();
        change(&mut recipe);
        let error = Trainer::open(recipe, |_| ControlFlow::Continue(())).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    let rank = |rank| LoraMethod {
        rank,
        ..LoraMethod::default()
    };
    refused(
        &|r| r.data.batch = 1_000_000_000,
        "data.batch: expected a number from 1 to 4096, got 1000000000",
    );
    refused(&|r| r.data.batch = i64::MAX as usize, "data.batch");
    refused(&|r| r.data.accumulate = 1 << 62, "data.accumulate");
    refused(&|r| r.data.sizes = Some(Vec::new()), "number of data.sizes");
    refused(&|r| r.data.sizes = Some(vec![[32, 100]]), "data.sizes");
    refused(
        &|r| r.data.weights = BTreeMap::from([("local".to_owned(), f64::NAN)]),
        "data.weights",
    );
    refused(&|r| r.method = Method::Lora(rank(1_000_000_000_000)), "method.rank");
    refused(
        &|r| {
            r.method = Method::Lora(LoraMethod {
                alpha: Some(f64::NAN),
                ..rank(2)
            });
        },
        "method.alpha",
    );
    refused(
        &|r| {
            r.method = Method::Lora(LoraMethod {
                default_scale: Some(0.0),
                ..rank(2)
            });
        },
        "method.default_scale",
    );
    refused(
        &|r| {
            r.method = Method::Lora(LoraMethod {
                targets: vec!["no".to_owned()],
                ..rank(2)
            });
        },
        "method.targets",
    );
    let guided = |guidance| {
        Objective::Flow(FlowObjective {
            guidance,
            ..FlowObjective::default()
        })
    };
    refused(&|r| r.objective = guided(f64::INFINITY), "objective.guidance");
    refused(&|r| r.rate.floor = -1.0, "rate.floor");
    refused(&|r| r.optimizer.beta2 = f64::NAN, "optimizer.beta2");
    refused(
        &|r| r.optimizer.muon = true,
        "optimizer.muon: expected method.kind = \"full\"",
    );
    refused(
        &|r| r.accept_changes = vec!["rat".to_owned()],
        "`rat`, which names none",
    );
    refused(&|r| r.seed = u64::MAX, "seed");
    refused(&|r| r.every.save = u64::MAX, "every.save");
    assert!(!world.path("cache").exists());
}

#[test]
fn what_is_wrong_is_said_before_anything_is_encoded() {
    let world = World::new();
    let reason = |table: &Table| {
        let recipe: Recipe = toml::from_str(&toml::to_string(table).unwrap()).unwrap();
        let error = recipe.check().unwrap_err();
        let cause = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        format!("{error}: {cause}")
    };
    let mut table = world.recipe();
    set(
        &mut table,
        &["data".to_owned(), "split".to_owned()],
        Some("none".into()),
    );
    assert!(reason(&table).contains("no item of split `none` has a weight above 0"));
    for (name, words) in [
        ("steps", "steps: expected a number from 1 to 1000000000, got 0"),
        ("seed", ""),
    ] {
        let mut table = world.recipe();
        table.insert(name.to_owned(), Value::Integer(0));
        if words.is_empty() {
            let recipe: Recipe = toml::from_str(&toml::to_string(&table).unwrap()).unwrap();
            recipe.check().unwrap();
        } else {
            assert!(reason(&table).contains(words));
        }
    }
    for path in ["model", "out"] {
        let mut table = world.recipe();
        table.insert(path.to_owned(), "".into());
        assert!(reason(&table).contains(&format!("invalid {path}: expected a path")));
    }
    for path in ["folder", "cache"] {
        let mut table = world.recipe();
        set(&mut table, &["data".to_owned(), path.to_owned()], Some("".into()));
        assert!(reason(&table).contains(&format!("invalid data.{path}: expected a path")));
    }
    let mut table = world.recipe();
    table.insert("device".to_owned(), "gpu".into());
    assert!(reason(&table).contains("cpu, cuda or cuda:N"));
    let mut table = world.recipe();
    table.insert("out".to_owned(), world.path("data/a.png").to_str().unwrap().into());
    assert!(reason(&table).contains("a.png"));
    std::fs::remove_file(world.path("data/metadata.jsonl")).unwrap();
    std::fs::write(world.path("data/a.txt"), "a cat").unwrap();
    assert!(reason(&world.recipe()).contains("the caption of \"a.png\" is in \"a.txt\""));
    assert!(!world.path("cache").exists());
}

#[test]
fn a_recipe_that_an_editor_has_saved_is_read_or_its_encoding_is_named() {
    let world = World::new();
    let path = world.path("recipe.toml");
    let text = toml::to_string(&world.recipe()).unwrap();
    let reason = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = Recipe::open(&path).unwrap_err();
        assert!(error.to_string().contains("recipe.toml"), "{error}");
        std::error::Error::source(&error).unwrap().to_string()
    };
    std::fs::write(&path, format!("\u{feff}{text}").replace('\n', "\r\n")).unwrap();
    assert_eq!(Recipe::open(&path).unwrap().steps, 2);
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(reason(&wide).contains("UTF-16; save it as UTF-8"));
    assert!(reason(b"model = '\xe9'").contains("not UTF-8"));
    assert!(reason(text.replace("steps = 2", "steps = 0").as_bytes()).contains("steps: expected a number from 1"));
    let deep = reason(format!("a = {}", "[".repeat(100_000)).as_bytes());
    assert!(deep.contains("recurs") && deep.len() < 1000, "{deep}");
    for bytes in [&b""[..], b"\0", b"steps = 9223372036854775808", b"[data"] {
        assert!(!reason(bytes).is_empty());
    }
}

#[test]
fn a_run_is_not_written_over_its_model() {
    let world = World::new();
    let digest = || {
        kontext::Checkpoint::find(world.path("model"))
            .unwrap()
            .digest(&[])
            .unwrap()
    };
    let before = digest();
    let mut recipe = Recipe::deserialize(world.recipe()).unwrap();
    for method in [Method::Full, recipe.method.clone()] {
        recipe.method = method;
        for out in ["model", "data/../model", "model/transformer", "model/vae/run"] {
            recipe.out = world.root().join(out);
            let error = recipe.check().unwrap_err().to_string();
            assert!(
                error.starts_with("invalid out: expected a folder of its own"),
                "{out}: {error}"
            );
            assert!(!world.path("model/vae/run").exists());
        }
    }
    #[cfg(unix)]
    {
        recipe.out = world.path("linked");
        kontext_core::create_folder(&recipe.out).unwrap();
        std::os::unix::fs::symlink(world.path("model/transformer"), world.path("linked/transformer")).unwrap();
        let error = recipe.check().unwrap_err().to_string();
        assert!(error.contains("with files of the model"), "{error}");
    }
    for out in ["model/run", ".", "run"] {
        recipe.out = world.root().join(out);
        recipe.check().unwrap();
    }
    assert_eq!(digest(), before);
}
