//! Judges a model's edits on a dataset whose answers are known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kontext::crates::kontext_core::read_json;
use kontext::image::RgbImage;
use kontext::{Autoencoder, Kind, Pipeline, Request};
use kontext_bench::edit::{EditScore, KnownEdit};
use serde::{Deserialize, Deserializer};

use super::pictures::Pictures;
use super::round_trip::round_trip;
use super::strip::strip;

/// An edit of a dataset, with the pictures that its result might be taken for.
#[derive(Debug, Clone, Deserialize)]
pub struct Edit {
    #[serde(default, deserialize_with = "one_or_many")]
    pub source: Vec<PathBuf>,
    pub target: PathBuf,
    pub instruction: String,
    #[serde(default)]
    pub category: String,
    pub split: String,
    #[serde(default)]
    family: Option<String>,
    #[serde(skip)]
    pub candidates: Vec<PathBuf>,
}

/// A path, a list of them, or null.
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

/// The edits of these splits in a dataset's folder.
pub fn edits(folder: &Path, splits: &[&str]) -> anyhow::Result<Vec<Edit>> {
    let path = folder.join("metadata.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let families = folder.join("families.json");
    let families: BTreeMap<String, Vec<PathBuf>> = if families.is_file() {
        read_json(&families)?
    } else {
        BTreeMap::new()
    };
    let mut edits = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let of = || format!("{} line {}", path.display(), number + 1);
        let mut edit: Edit = serde_json::from_str(line).with_context(of)?;
        if splits.contains(&edit.split.as_str()) {
            let family = edit.family.as_ref().and_then(|family| families.get(family));
            edit.candidates = family.cloned().unwrap_or_default();
            edits.push(edit);
        }
    }
    Ok(edits)
}

/// A model and the pictures of a dataset, at the model's size.
pub struct Judge {
    pipe: Pipeline,
    vae: Autoencoder,
    folder: PathBuf,
    pictures: Pictures,
    /// The autoencoder's reconstructions of targets.
    reconstructions: BTreeMap<PathBuf, RgbImage>,
}

/// A judged edit and its pictures.
pub struct Judged {
    pub sources: Vec<RgbImage>,
    pub result: RgbImage,
    pub truth: RgbImage,
    pub score: EditScore,
}

impl Judged {
    /// Reference pictures, result and truth side by side, twice as large.
    pub fn strip(&self) -> RgbImage {
        let pictures: Vec<&RgbImage> = self.sources.iter().chain([&self.result, &self.truth]).collect();
        strip(&pictures, 2)
    }
}

impl Judge {
    pub fn new(pipe: Pipeline, folder: &Path) -> anyhow::Result<Self> {
        let checkpoint = pipe.checkpoint().context("the model has no folder")?;
        let vae = Autoencoder::open(&checkpoint.vae, Kind::Float, pipe.device())?;
        Ok(Self {
            pipe,
            vae,
            folder: folder.to_owned(),
            pictures: Pictures::of(folder),
            reconstructions: BTreeMap::new(),
        })
    }

    /// Makes the edit's picture, of `references` in place of its own sources, and judges it.
    pub fn judge(&mut self, edit: &Edit, references: &[PathBuf], seed: u64) -> anyhow::Result<Judged> {
        let mut request = Request::generate(&edit.instruction).seed(seed).native_size();
        for path in references {
            request.images.push(kontext::open(self.folder.join(path))?);
        }
        let result = self.pipe.run(&request)?.image;
        let (width, height) = result.dimensions();
        let truth = self.pictures.get(&edit.target, width, height)?;
        let sources = edit
            .source
            .iter()
            .map(|s| self.pictures.get(s, width, height))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let candidates = edit
            .candidates
            .iter()
            .map(|c| self.pictures.get(c, width, height))
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
