//! A model, data and a run's folder, and hooks at the renaming of files.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use image::{Rgb, RgbImage};
use kontext_core::failpoint;
use kontext_nn::Weights;
use kontext_train::{LoraMethod, Method, Recipe};
use serde_json::json;

pub(crate) use crate::model::{SIDE, go_on, reason, train};

pub(crate) const STEPS: u64 = 4;

/// A model, four pairs of images, and the folder of a run.
pub(crate) struct World(crate::model::World);

impl Deref for World {
    type Target = crate::model::World;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let world = crate::model::World::new(2, 8);
        let mut lines = Vec::new();
        for n in 0..4_u8 {
            for (name, colour) in [("source", [200, 40 * n, 30]), ("target", [30, 40 * n, 200])] {
                let image = RgbImage::from_pixel(SIDE, SIDE, Rgb(colour));
                world.image(&format!("{n}-{name}.png"), &image);
            }
            lines.push(json!({
                "source": format!("{n}-source.png"), "target": format!("{n}-target.png"),
                "instruction": "make it blue", "split": if n == 0 { "test" } else { "train" },
            }));
        }
        world.metadata(lines);
        Self(world)
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

/// Runs a test of this program in a child process, which gets `file` and `number` by [`killed`], and aborts at the
/// renaming of this number. It has the threads of this process: the order of sums depends on them.
pub(crate) fn run_killed(test: &str, file: &Path, number: u64) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored"])
        .env("KILLED_FILE", file)
        .env("KILLED_AT", number.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!child.success(), "renaming {number} was not reached");
}

/// The file and the number of the renaming in a child process.
pub(crate) fn killed() -> Option<(PathBuf, u64)> {
    let number = std::env::var("KILLED_AT").ok()?.parse().unwrap();
    Some((std::env::var_os("KILLED_FILE")?.into(), number))
}
