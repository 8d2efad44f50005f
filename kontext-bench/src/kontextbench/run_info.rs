//! Facts that determine a run: results with different ones are never mixed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Contents of `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Name of the run on the page and in votes.
    pub name: String,
    /// Seed of the run; each pair's seed derives from it and the pair's key.
    pub seed: u64,
    /// Other settings that determine the results, by name: the model's identity, its device, steps, guidance.
    pub settings: BTreeMap<String, String>,
    /// Digest of the bench; left empty by the caller and filled in by the run.
    #[serde(default)]
    pub bench: String,
    /// Number of pairs in the bench.
    #[serde(default)]
    pub pairs: usize,
    /// Networks and settings of the metrics, by name.
    #[serde(default)]
    pub metrics: BTreeMap<String, String>,
}

impl RunInfo {
    /// Creates the facts of a run with this name and seed, without settings.
    #[must_use]
    pub fn new(name: impl Into<String>, seed: u64) -> Self {
        Self {
            name: name.into(),
            seed,
            settings: BTreeMap::new(),
            bench: String::new(),
            pairs: 0,
            metrics: BTreeMap::new(),
        }
    }

    /// Adds a setting.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// Describes the differences from another run; `None` if there are none.
    ///
    /// ```
    /// use kontext_bench::kontextbench::RunInfo;
    /// let (a, b) = (RunInfo::new("a", 0).setting("steps", "4"), RunInfo::new("a", 1).setting("steps", "8"));
    /// assert_eq!(a.difference(&b).unwrap(), "seed is 0 and 1, steps is 4 and 8");
    /// assert_eq!(a.difference(&a), None);
    /// ```
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<String> {
        difference(&self.facts(), &other.facts())
    }

    /// Returns all facts, by name.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<String, String> {
        let own = [
            ("name", self.name.clone()),
            ("seed", self.seed.to_string()),
            ("bench", self.bench.clone()),
            ("pairs", self.pairs.to_string()),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        let metrics = self
            .metrics
            .iter()
            .map(|(name, value)| (format!("metric {name}"), value.clone()));
        let settings = self.settings.iter().map(|(name, value)| (name.clone(), value.clone()));
        settings.chain(metrics).chain(own).collect()
    }
}

/// Describes the differences of two sets of facts; `None` if there are none.
///
/// ```
/// use kontext_bench::kontextbench::difference;
/// let facts = |steps: &str| [("steps".to_owned(), steps.to_owned())].into();
/// assert_eq!(difference(&facts("4"), &facts("8")).unwrap(), "steps is 4 and 8");
/// assert_eq!(difference(&facts("4"), &[].into()).unwrap(), "steps is 4 and none");
/// ```
#[must_use]
pub fn difference(here: &BTreeMap<String, String>, there: &BTreeMap<String, String>) -> Option<String> {
    let names: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
    let value = |facts: &BTreeMap<String, String>, name| facts.get(name).map_or("none", String::as_str).to_owned();
    let differing = names.into_iter().filter(|name| here.get(*name) != there.get(*name));
    let words = differing.map(|name| format!("{name} is {} and {}", value(here, name), value(there, name)));
    let words = words.collect::<Vec<_>>().join(", ");
    (!words.is_empty()).then_some(words)
}
