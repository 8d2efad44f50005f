//! Scores of a model's edits on a dataset with known results.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kontext::image::RgbImage;
use kontext::{Autoencoder, Error, Mask, Pipeline, ReferenceReuse, Request, Size, StepCache};
use kontext_bench::edit::{EditScore, KnownEdit};
use kontext_core::json_lines::inside;
use kontext_core::read_json;
use kontext_train::dataset::{Dataset, Item};

use crate::images::ImageCache;
use crate::notes::Notes;
use crate::program::note;
use crate::round_trip::{autoencoder, round_trip};
use crate::strip::strip;

/// The lines of a dataset.
const METADATA: &str = "metadata.jsonl";
/// Images by family.
const FAMILIES: &str = "families.json";

/// An edit of a dataset, with the images that its result might be mistaken for.
#[derive(Debug, Clone)]
pub struct Edit {
    /// Reference images; empty for text-to-image.
    pub source: Vec<PathBuf>,
    /// The true result.
    pub target: PathBuf,
    /// The prompt.
    pub instruction: String,
    /// Category, such as "local/hair"; may be empty.
    pub category: String,
    /// Its split, such as "train" or "test".
    pub split: String,
    /// Images of its family, the target among them; empty if the dataset lists none.
    pub candidates: Vec<PathBuf>,
}

/// Returns the edits of these splits in a dataset's folder, in the order of its `metadata.jsonl`. Lines that
/// cannot be used are named on stderr and left out, as training leaves them out.
///
/// # Errors
/// Those of [`Dataset::open`], and if `families.json` cannot be read or names a path that leaves the folder.
pub fn edits(folder: &Path, splits: &[&str]) -> anyhow::Result<Vec<Edit>> {
    let families = families(&folder.join(FAMILIES))?;
    let Dataset { items, skipped, .. } = Dataset::open(folder)?;
    skipped
        .iter()
        .for_each(|skipped| note(format_args!("skipped {skipped}")));
    let edit = |item: Item| {
        let family = item.family.as_ref().and_then(|family| families.get(family));
        Edit {
            source: item.sources,
            target: item.target,
            instruction: item.instruction,
            category: item.category,
            split: item.split,
            candidates: family.cloned().unwrap_or_default(),
        }
    };
    let wanted = |item: &Item| splits.contains(&item.split.as_str());
    Ok(items.into_iter().filter(wanted).map(edit).collect())
}

/// Returns the files of a dataset that [`edits`] and [`Judge`] read, relative to its folder; those of a dataset that
/// cannot be read are its lists only.
#[must_use]
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let lists = [METADATA, FAMILIES].map(PathBuf::from);
    let images = Dataset::open(folder)
        .map(|dataset| dataset.images())
        .unwrap_or_default();
    let families = families(&folder.join(FAMILIES)).unwrap_or_default();
    lists
        .into_iter()
        .chain(images)
        .chain(families.into_values().flatten())
        .collect()
}

/// Reads the images of each family; none if there is no such file.
fn families(path: &Path) -> anyhow::Result<BTreeMap<String, Vec<PathBuf>>> {
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    let families: BTreeMap<String, Vec<String>> = read_json(path)?;
    let checked = |(name, paths): (String, Vec<String>)| {
        let paths = paths.iter().map(|path| inside(path)).collect::<Result<_, _>>();
        let paths = paths.map_err(|reason| Error::config(path, format!("family {name:?}: {reason}; correct it")))?;
        Ok((name, paths))
    };
    families.into_iter().map(checked).collect()
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
    notes: Notes,
    step_cache: StepCache,
    /// Reuse of the references in all edits (default: none).
    pub reference_reuse: Option<ReferenceReuse>,
    /// Repainting of the pixels that the truth changes, and of no others (default: false).
    pub true_mask: bool,
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
            notes: Notes::default(),
            step_cache: StepCache::Off,
            reference_reuse: None,
            true_mask: false,
        })
    }

    /// Sets the step cache of all edits (default: off).
    #[must_use]
    pub fn step_cache(self, step_cache: StepCache) -> Self {
        Self { step_cache, ..self }
    }

    /// Runs an edit on `references`, which may differ from its own sources, and scores the result. Warnings,
    /// and text that an encoder does not see, are printed to stderr when they first come.
    ///
    /// # Errors
    /// If an image cannot be read or the run fails.
    pub fn judge(&mut self, edit: &Edit, references: &[PathBuf], seed: u64) -> anyhow::Result<Judged> {
        let mut request = Request::generate(&edit.instruction)
            .seed(seed)
            .native_size()
            .step_cache(self.step_cache);
        request.reference_reuse.clone_from(&self.reference_reuse);
        for path in references {
            request = request.reference(kontext::open_image(self.folder.join(path))?);
        }
        if self.true_mask && !edit.source.is_empty() {
            request = self.masked(request, edit)?;
        }
        let output = self.pipe.run_with(&request, |event| {
            self.notes.observe("", &event);
            ControlFlow::Continue(())
        });
        let result = output?.image;
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

impl Judge {
    /// Returns a request with the edit's true mask, if it has one, and the source at the model's size, in which results
    /// are compared.
    fn masked(&mut self, mut request: Request, edit: &Edit) -> anyhow::Result<Request> {
        let (Some(image), Some(path)) = (request.images.first_mut(), edit.source.first()) else {
            return Ok(request);
        };
        let plan = self.pipe.plan(&Request::edit(&*image, ""))?;
        let Size { width, height } = plan.target.size();
        let source = self.images.get(path, width, height)?;
        let truth = self.images.get(&edit.target, width, height)?;
        let known = KnownEdit {
            source: Some(&source),
            truth: &truth,
            candidates: &[],
            reconstruction: &truth,
        };
        let Some(mask) = known.mask()? else {
            return Ok(request);
        };
        *image = Arc::new(source);
        request.native_size = false;
        // Without a feather: every pixel that should stay is one that does.
        Ok(request.mask(Mask::new(mask).feather(0.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_is_read_as_training_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let lines = [
            r#"{"source": "a.png", "target": "b.png", "prompt": "p", "family": "f"}"#,
            r#"{"target": "../b.png", "instruction": "p"}"#,
            r#"{"target": "b.png", "instruction": "", "split": "test", "family": "none"}"#,
        ];
        write("metadata.jsonl", &format!("\u{feff}{}\r\n\r\n", lines.join("\r\n")));
        write("families.json", "\u{feff}{\"f\": [\"b.png\", \"./c.png\"]}");
        let all = edits(folder.path(), &["train", "test"]).unwrap();
        assert_eq!(
            (all.len(), all[0].instruction.as_str(), all[0].split.as_str()),
            (2, "p", "train")
        );
        assert_eq!(all[0].candidates, [Path::new("b.png"), Path::new("c.png")]);
        assert!(all[1].candidates.is_empty() && all[1].source.is_empty());
        let read = files(folder.path());
        let names = [METADATA, FAMILIES, "a.png", "b.png", "b.png", "c.png"];
        assert_eq!(read, names.map(PathBuf::from));
        for (text, words) in [
            (
                "{\"f\": [\"/b.png\"]}",
                "family \"f\": the path \"/b.png\" does not stay in the folder",
            ),
            ("{\"f\": \"b.png\"}", "line 1"),
            ("[]", "expected an object"),
            ("{\0", "UTF-16"),
        ] {
            write("families.json", text);
            let error = edits(folder.path(), &["train"]).unwrap_err();
            let told = format!("{error:#}");
            assert!(told.contains("families.json") && told.contains(words), "{told}");
        }
    }
}
