//! Scores of a model's edits on a dataset with known results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kontext::image::RgbImage;
use kontext::{Autoencoder, Pipeline, Request};
use kontext_bench::edit::{EditScore, KnownEdit};
use kontext_core::read_json;
use serde::{Deserialize, Deserializer};

use crate::files::read;
use crate::images::ImageCache;
use crate::round_trip::{autoencoder, round_trip};
use crate::strip::strip;

/// An edit of a dataset, with the images that its result might be mistaken for.
#[derive(Debug, Clone, Deserialize)]
pub struct Edit {
    /// Reference images; empty for text-to-image.
    #[serde(default, deserialize_with = "one_or_many")]
    pub source: Vec<PathBuf>,
    /// The true result.
    pub target: PathBuf,
    /// The prompt.
    pub instruction: String,
    /// Category, such as "local/hair"; may be empty.
    #[serde(default)]
    pub category: String,
    /// Its split, such as "train" or "test".
    pub split: String,
    #[serde(default)]
    family: Option<String>,
    /// Images of its family, the target among them; empty if the dataset lists none.
    #[serde(skip)]
    pub candidates: Vec<PathBuf>,
}

/// Reads a path, a list of paths, or null.
fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Sources {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }
    Ok(match Option::<Sources>::deserialize(from)? {
        None => Vec::new(),
        Some(Sources::One(path)) => vec![path],
        Some(Sources::Many(paths)) => paths,
    })
}

/// Returns the edits of these splits in a dataset's folder, in the order of its `metadata.jsonl`.
///
/// # Errors
/// If a file of the dataset cannot be read.
pub fn edits(folder: &Path, splits: &[&str]) -> anyhow::Result<Vec<Edit>> {
    let path = folder.join("metadata.jsonl");
    let text = read(&path)?;
    let families = folder.join("families.json");
    let families: BTreeMap<String, Vec<PathBuf>> = if families.is_file() {
        read_json(&families)?
    } else {
        BTreeMap::new()
    };
    let mut edits = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{} line {}", path.display(), number + 1);
        let mut edit: Edit = serde_json::from_str(line).with_context(place)?;
        if splits.contains(&edit.split.as_str()) {
            let family = edit.family.as_ref().and_then(|family| families.get(family));
            edit.candidates = family.cloned().unwrap_or_default();
            edits.push(edit);
        }
    }
    Ok(edits)
}

/// A model and the images of a dataset, at the model's size.
#[derive(Debug)]
pub struct Judge {
    pipe: Pipeline,
    vae: Autoencoder,
    folder: PathBuf,
    images: ImageCache,
    /// Targets through the autoencoder and back.
    reconstructions: BTreeMap<PathBuf, RgbImage>,
}

/// A scored edit and its images.
#[derive(Debug)]
pub struct Judged {
    /// The edit's own reference images.
    pub sources: Vec<RgbImage>,
    /// The model's result.
    pub result: RgbImage,
    /// The true result.
    pub truth: RgbImage,
    /// The score of the result.
    pub score: EditScore,
}

impl Judged {
    /// Returns reference images, result and truth in a row, at twice their size.
    #[must_use]
    pub fn strip(&self) -> RgbImage {
        let images: Vec<&RgbImage> = self.sources.iter().chain([&self.result, &self.truth]).collect();
        strip(&images, 2)
    }
}

impl Judge {
    /// Opens the autoencoder of a loaded model a second time, for the reconstructions of targets.
    ///
    /// # Errors
    /// If the model was not loaded from a folder, or its autoencoder cannot be read.
    pub fn new(pipe: Pipeline, folder: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            vae: autoencoder(&pipe)?,
            pipe,
            folder: folder.to_owned(),
            images: ImageCache::new(folder),
            reconstructions: BTreeMap::new(),
        })
    }

    /// Runs an edit on `references`, which may differ from its own sources, and scores the result.
    ///
    /// # Errors
    /// If an image cannot be read or the run fails.
    pub fn judge(&mut self, edit: &Edit, references: &[PathBuf], seed: u64) -> anyhow::Result<Judged> {
        let mut request = Request::generate(&edit.instruction).seed(seed).native_size();
        for path in references {
            request = request.reference(kontext::open_image(self.folder.join(path))?);
        }
        let result = self.pipe.run(&request)?.image;
        let (width, height) = result.dimensions();
        let mut resized = |path: &PathBuf| self.images.get(path, width, height);
        let truth = resized(&edit.target)?;
        let sources = edit
            .source
            .iter()
            .map(&mut resized)
            .collect::<anyhow::Result<Vec<_>>>()?;
        let candidates = edit
            .candidates
            .iter()
            .map(&mut resized)
            .collect::<anyhow::Result<Vec<_>>>()?;
        if !self.reconstructions.contains_key(&edit.target) {
            let reconstruction = round_trip(&self.vae, &truth, None, self.pipe.device())?;
            self.reconstructions.insert(edit.target.clone(), reconstruction);
        }
        let known = KnownEdit {
            source: sources.first(),
            truth: &truth,
            candidates: &candidates,
            reconstruction: &self.reconstructions[&edit.target],
        };
        let score = known.score(&result)?;
        Ok(Judged {
            sources,
            result,
            truth,
            score,
        })
    }
}
