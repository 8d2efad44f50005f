//! A model, data and a run's folder, and hooks at the renaming of files.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use image::{Rgb, RgbImage};
use kontext::{Layout, ModelDefaults};
use kontext_core::{Error, failpoint};
use kontext_nn::Weights;
use kontext_train::{LoraMethod, Method, Recipe, TrainEvent, Trainer};
use serde_json::json;
use tempfile::TempDir;

pub(crate) const SIDE: u32 = 32;

pub(crate) const STEPS: u64 = 4;

/// A model, four pairs of images, and the folder of a run.
pub(crate) struct World(TempDir);

impl World {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A LoRA's recipe that saves at every `save` steps, and validates and samples after the third.
    pub(crate) fn recipe(&self, save: u64) -> Recipe {
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

pub(crate) fn go_on(_: TrainEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Trains to the end, resumed or not.
pub(crate) fn train(recipe: &Recipe) -> kontext_core::Result<()> {
    Trainer::open(recipe.clone(), go_on)?.run(go_on)
}

/// Returns the bytes of all files below a folder, by path, without the temporary ones of killed programs.
pub(crate) fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
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

pub(crate) fn reason(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Calls `at` before renaming number `number` below `folder`, from 1, and counts them.
pub(crate) fn before_renaming(
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
pub(crate) fn progress(recipe: &Recipe) -> Option<(u64, u64)> {
    let state = recipe.out.join("state.safetensors");
    let state = state.is_file().then(|| Weights::open(state).unwrap())?;
    let csv = std::fs::read_to_string(recipe.out.join("curve.csv")).unwrap();
    Some((
        state.store().metadata()["step"].parse().unwrap(),
        csv.lines().count() as u64 - 1,
    ))
}
