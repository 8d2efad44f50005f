//! The record of an edit: what its results were made of.

use std::collections::BTreeMap;

use kontext_bench::kontextbench::difference;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Hexadecimal digits of a digest in messages.
const SHOWN: usize = 8;

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Identity of the edit.
    pub(super) key: String,
    /// Its line in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<usize>,
    /// Seed of the noise.
    pub(super) seed: u64,
    /// The image that was edited, then references.
    pub(super) images: Vec<HashedFile>,
    /// The request, without its seed and what is not set.
    pub(super) request: Map<String, Value>,
    /// Digest of the run's settings.
    pub(super) settings: String,
    /// Files of the results, within the folder.
    pub(super) results: Vec<HashedFile>,
}

/// A file with the digest of its content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct HashedFile {
    pub(super) file: String,
    pub(super) sha256: String,
}

impl Record {
    /// Returns what the results were made of, by name. Paths of images and the number of the line do not count.
    fn facts(&self) -> BTreeMap<String, String> {
        let images = self.images.iter().enumerate().map(|(index, image)| {
            let name = if index == 0 {
                "image".to_owned()
            } else {
                format!("reference {index}")
            };
            (name, image.sha256.chars().take(SHOWN).collect())
        });
        let options = self
            .request
            .iter()
            .map(|(name, value)| (name.clone(), value.to_string()));
        let own = [
            ("edit", self.key.clone()),
            ("seed", self.seed.to_string()),
            ("settings of loading", self.settings.clone()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        options.chain(images).chain(own).collect()
    }

    /// Describes the differences from another record; `None` if its results are of the same images and request.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        difference(&self.facts(), &other.facts())
    }

    /// Returns `true` if the results have the same names.
    pub(super) fn has_names(&self, names: &[String]) -> bool {
        self.results.iter().map(|result| &result.file).eq(names)
    }
}
