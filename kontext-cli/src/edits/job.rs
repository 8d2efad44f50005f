//! One edit of many.

use std::path::PathBuf;

use kontext::Request;
use kontext_bench::kontextbench::{Problem, derived_seed};
use serde_json::{Map, Value};

/// Images of one edit for which names are chosen: more than any device makes at once.
const MOST_IMAGES: usize = 10_000;

/// An edit, checked but for the pixels of its images.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Identity, of which seeds are derived: an image's path within its folder, or the name of a line's result.
    pub(super) key: String,
    /// Line of the manifest, from 1.
    pub(super) line: Option<usize>,
    /// File that messages name: the image, or the manifest.
    pub(super) file: PathBuf,
    /// The image to edit, then references.
    pub(super) images: Vec<PathBuf>,
    /// The request, without images; without a seed if it derives of the run's.
    pub(super) request: Request,
    /// Name wanted for the result.
    pub(super) wanted: Wanted,
    /// Names of the results, once chosen.
    pub(super) names: Vec<String>,
    /// Settings and sizes of the run, equal for requests that can run together; known once it is planned.
    pub(super) shape: String,
}

/// The name wanted for a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// This one.
    Given(String),
    /// The first free one of these stems.
    First(Vec<String>),
}

impl Job {
    /// Returns a problem of this edit.
    pub(super) fn problem(&self, what: impl Into<String>) -> Problem {
        Problem {
            file: self.file.clone(),
            line: self.line,
            what: what.into(),
        }
    }

    /// Returns the seed of its noise: its own, else one derived of the run's and the key.
    pub(super) fn seed(&self, run: u64) -> u64 {
        self.request.seed.unwrap_or_else(|| derived_seed(run, &self.key))
    }

    /// Returns the number of images of its batch; of one that is too large, which its plan refuses, no more than this.
    pub(super) fn images_made(&self) -> usize {
        self.request.batch.min(MOST_IMAGES)
    }

    /// Returns the request as records hold it, without what is not set.
    pub(super) fn written(&self) -> serde_json::Result<Map<String, Value>> {
        written(&self.request)
    }
}

/// Returns a request as an object, without what is not set.
pub(super) fn written(request: &Request) -> serde_json::Result<Map<String, Value>> {
    Ok(match serde_json::to_value(request)? {
        Value::Object(mut fields) => {
            fields.retain(|_, value| !value.is_null());
            fields
        }
        _ => Map::new(),
    })
}
