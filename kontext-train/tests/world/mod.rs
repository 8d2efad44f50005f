//! A small random model with data and the folder of a run.
// Each test file uses some of these helpers.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use image::RgbImage;
use kontext::{Layout, ModelDefaults};
use kontext_core::Error;
use kontext_train::{Recipe, TrainEvent, Trainer};
use serde_json::Value;
use tempfile::TempDir;

/// Sides of the images.
pub const SIDE: u32 = 32;

/// A folder with a model in `model`, and data in `data`.
pub struct World(TempDir);

impl World {
    /// Makes the model; the folder of the data is empty.
    pub fn new(sampling_steps: usize, text_tokens: usize) -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        kontext::random_model(world.path("model"), 7, Layout::Diffusers).unwrap();
        let defaults = ModelDefaults {
            sizes: Some(vec![[SIDE, SIDE]]),
            steps: Some(sampling_steps),
            max_sequence_length: Some(text_tokens),
            ..ModelDefaults::default()
        };
        defaults.save(world.path("model")).unwrap();
        std::fs::create_dir(world.path("data")).unwrap();
        world
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Adds an image to the data.
    pub fn image(&self, name: &str, image: &RgbImage) -> PathBuf {
        let path = self.path("data").join(name);
        image.save(&path).unwrap();
        path
    }

    /// Writes the examples of the data.
    pub fn metadata(&self, lines: impl IntoIterator<Item = Value>) {
        let text: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(self.path("data/metadata.jsonl"), text).unwrap();
    }
}

pub fn go_on(_: TrainEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Trains to the end, resumed or not.
pub fn train(recipe: &Recipe) -> kontext_core::Result<()> {
    Trainer::open(recipe.clone(), go_on)?.run(go_on)
}

/// The cause of an error, or its message.
pub fn reason(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
