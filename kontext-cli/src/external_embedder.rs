//! A network for identity, such as one for faces: an external command.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::Context;
use kontext::image::RgbImage;
use kontext_bench::metrics::Embedder;
use kontext_core::{Result, lock};
use serde_json::json;
use tempfile::TempDir;

use crate::line_process::{LineProcess, absolute};

/// A command that embeds images, one line of JSON for each: it gets `{"task": "embed", "key", "image"}` with the path of
/// a PNG file, which is removed after the answer, and answers `{"key", "embedding"}` with a list of numbers, or `null`
/// if the image has no subject, such as no face. Detection and alignment are the command's.
#[derive(Debug)]
pub struct ExternalEmbedder {
    name: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    process: LineProcess,
    /// Folder of the image that the command sees.
    folder: TempDir,
    /// Images embedded.
    count: usize,
}

impl ExternalEmbedder {
    /// Starts the command, which is also the embedder's name in reports.
    ///
    /// # Errors
    /// Those of [`LineProcess::start`]; if there is no place for temporary files.
    pub fn start(command: &str) -> anyhow::Result<Self> {
        let state = State {
            process: LineProcess::start(command)?,
            folder: tempfile::tempdir().context("cannot make a temporary folder")?,
            count: 0,
        };
        Ok(Self {
            name: command.to_owned(),
            state: Mutex::new(state),
        })
    }
}

impl Embedder for ExternalEmbedder {
    fn name(&self) -> &str {
        &self.name
    }

    fn embed(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
        let mut state = lock(&self.state);
        images.iter().map(|image| state.embed(image)).collect()
    }
}

impl State {
    fn embed(&mut self, image: &RgbImage) -> Result<Vec<f32>> {
        let key = self.count.to_string();
        self.count += 1;
        let path: PathBuf = self.folder.path().join(format!("{key}.png"));
        kontext::io::save_image(image, &path, &[])?;
        let answer = self
            .process
            .ask(&json!({"task": "embed", "key": key, "image": absolute(&path)?}))?;
        // A file that cannot be removed now is removed with its folder.
        let _ = std::fs::remove_file(&path);
        answer.numbers("embedding")
    }
}
