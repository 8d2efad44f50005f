//! Held-out edits of a dataset: their images at a model's size, and the results of a model.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use kontext::image::RgbImage;
use kontext::{Event, Pipeline, Request, StepWork};
use kontext_bench::edit::HeldOut;
use kontext_bench::metrics::{Features, Kid};

use crate::images::ImageCache;
use crate::judge::{Edit, edits};
use crate::notes::Notes;
use crate::progress;
use crate::round_trip::{autoencoder, round_trip};

/// Flags of a program that measures a model on a split of the dataset.
#[derive(Debug, Clone, clap::Args)]
pub struct SplitArgs {
    /// The dataset's folder; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "target/emoji")]
    pub data: PathBuf,
    /// The split to measure: `test` for new combinations, `wording` for the same in new words
    #[arg(long, default_value = "test")]
    pub split: String,
}

/// Held-out edits with one reference image each.
#[derive(Debug)]
pub struct HeldOutEdits {
    edits: Vec<Edit>,
    /// The reference images as they are in the dataset.
    references: Vec<Arc<RgbImage>>,
    /// The edits' images at the size of the model's results.
    known: HeldOut,
    notes: Notes,
}

/// The results of a model, in the order of the edits.
#[derive(Debug)]
pub struct Results {
    /// The results.
    pub images: Vec<RgbImage>,
    /// Mean time of a run, in seconds.
    pub seconds: f64,
    /// Mean number of steps of a run of which blocks were computed.
    pub computed: f64,
    /// Mean operations of the transformer in a run, as a share of those of all steps computed.
    pub flops: f64,
}

impl HeldOutEdits {
    /// Chooses `most` edits with one reference image, evenly from all of a split, and makes their images at the size
    /// of the model's results: the sources, the truths, and the truths by its autoencoder.
    ///
    /// # Errors
    /// If the dataset cannot be read or has no such edit in the split, an image cannot be read or does not have the
    /// proportions of the first, or the model was not loaded from files.
    pub fn open(folder: &Path, split: &str, most: usize, pipe: &Pipeline) -> anyhow::Result<Self> {
        let all = edits(folder, &[split])?;
        let single: Vec<Edit> = all.into_iter().filter(|edit| edit.source.len() == 1).collect();
        let edits = spread(single, most);
        let Some(first) = edits.first() else {
            let folder = folder.display();
            bail!("{folder} has no edits of split `{split}` with one reference image; name another --split");
        };
        let reference = |edit: &Edit| {
            let source = edit.source.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
            Ok(Arc::new(kontext::open_image(folder.join(source))?))
        };
        let references = edits.iter().map(reference).collect::<anyhow::Result<Vec<_>>>()?;
        let image = references.first().context("an edit without a reference image")?;
        let plan = pipe.plan(&request(&first.instruction, image))?;
        let (width, height) = (plan.output.width, plan.output.height);
        let (vae, mut images) = (autoencoder(pipe)?, ImageCache::new(folder));
        let (mut sources, mut truths, mut reconstructions) = (Vec::new(), Vec::new(), Vec::new());
        for edit in &edits {
            let source = edit.source.first().context("an edit without a reference image")?;
            sources.push(images.get(source, width, height)?);
            let truth = images.get(&edit.target, width, height)?;
            reconstructions.push(round_trip(&vae, &truth, None, pipe.device())?);
            truths.push(truth);
        }
        Ok(Self {
            edits,
            references,
            known: HeldOut::new(sources, truths, reconstructions)?,
            notes: Notes::default(),
        })
    }

    /// Returns the images of the edits at the model's size.
    #[must_use]
    pub fn known(&self) -> &HeldOut {
        &self.known
    }

    /// Returns the distance of results to the truths in the features of a network.
    ///
    /// # Errors
    /// Those of [`Kid::new`].
    pub fn kid<'a>(&self, features: &'a Features) -> anyhow::Result<Kid<'a>> {
        let truths: Vec<&RgbImage> = self.known.truths().iter().collect();
        Ok(Kid::new(features, &truths)?)
    }

    /// Runs the first `count` edits, each as a request that `set` changes, with a bar. The number of an edit is the
    /// second argument of `set`.
    ///
    /// # Errors
    /// If a run fails.
    pub fn run(
        &self,
        pipe: &Pipeline,
        label: &'static str,
        count: usize,
        set: impl Fn(Request, usize) -> Request,
    ) -> anyhow::Result<Results> {
        let pairs = self.edits.iter().zip(&self.references).take(count);
        let bar = progress::bar(label, pairs.len());
        let mut results = Results {
            images: Vec::new(),
            seconds: 0.0,
            computed: 0.0,
            flops: 0.0,
        };
        for (index, (edit, image)) in pairs.enumerate() {
            let request = set(request(&edit.instruction, image), index);
            let start = Instant::now();
            let output = pipe.run_with(&request, |event| self.observe(&event))?;
            results.seconds += start.elapsed().as_secs_f64();
            let steps = output.work.iter().flatten();
            results.computed += steps.filter(|work| is_computed(**work)).count() as f64;
            results.flops += output.flops as f64 / output.plan.flops.exact.max(1) as f64;
            results.images.push(output.image);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let count = results.images.len().max(1) as f64;
        Ok(Results {
            seconds: results.seconds / count,
            computed: results.computed / count,
            flops: results.flops / count,
            ..results
        })
    }

    fn observe(&self, event: &Event<'_>) -> ControlFlow<()> {
        self.notes.observe("", event);
        ControlFlow::Continue(())
    }
}

/// Returns `true` for a step of which blocks are computed, for all tokens or some.
fn is_computed(work: StepWork) -> bool {
    !matches!(work, StepWork::Skipped | StepWork::Estimated)
}

/// Returns the request of an edit, at the size that the model works at.
fn request(instruction: &str, image: &Arc<RgbImage>) -> Request {
    Request::edit(image, instruction).native_size()
}

/// Takes `most` items, evenly from all of them; all if there are not more.
fn spread<T>(items: Vec<T>, most: usize) -> Vec<T> {
    let count = items.len();
    let most = most.min(count);
    let taken = |index: usize| (index + 1) * most / count.max(1) > index * most / count.max(1);
    let numbered = items.into_iter().enumerate();
    numbered
        .filter(|(index, _)| taken(*index))
        .map(|(_, item)| item)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_taken_evenly() {
        let of = |count: usize, most: usize| spread((0..count).collect(), most);
        assert_eq!(of(10, 5), [1, 3, 5, 7, 9]);
        assert_eq!(of(3, 9), [0, 1, 2]);
        assert_eq!(of(0, 4), Vec::<usize>::new());
        assert_eq!(of(1000, 256).len(), 256);
    }
}
