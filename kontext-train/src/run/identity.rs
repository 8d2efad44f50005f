//! The recipe, the model and the data that a state belongs to, which a resumed run must have, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result};

use super::Snapshot;
use super::recipe_changes::{Change, Comparable, changes, covers, text};

/// Key of the recipe among a snapshot's facts.
const RECIPE: &str = "recipe";

/// The identity of a run, compared with that of the state in its folder.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The state's path and facts, if there is one.
    saved: Option<(PathBuf, BTreeMap<String, String>)>,
    accepted: Vec<String>,
    facts: BTreeMap<String, String>,
    /// `true` if a change was accepted with which the loss is another one.
    new_loss: bool,
}

impl Identity {
    /// Compares the recipe with that of the state.
    ///
    /// # Errors
    /// A checkpoint error that names the fields that differ and are not accepted.
    pub(crate) fn new<R: Comparable>(recipe: &R, state: Option<&Snapshot>) -> Result<Self> {
        let mut identity = Self {
            saved: state.map(|state| (state.path().to_owned(), state.facts.clone())),
            accepted: recipe.accepted().to_vec(),
            facts: BTreeMap::from([(RECIPE.to_owned(), text(recipe)?)]),
            new_loss: false,
        };
        if let Some((path, text)) = identity.saved(RECIPE) {
            let unreadable = |e: toml::de::Error| {
                let reason = format!("its recipe is of another version: {}", e.message());
                Error::config(path, format!("{reason}; start in another folder"))
            };
            let before: R = toml::from_str(text).map_err(unreadable)?;
            let changes = changes::<R>(&before, recipe)?;
            let fixed = [R::FIXED, recipe.fixed_after(&before)].concat();
            identity.compare(path, &fixed, &changes)?;
            let is_loss = |change: &Change| R::LOSS.iter().any(|name| covers(name, &change.field));
            identity.new_loss = changes.iter().any(is_loss);
        }
        Ok(identity)
    }

    /// Compares a digest of files, one of [`Comparable::FILES`], with that of the state. `name` accepts another
    /// one.
    ///
    /// # Errors
    /// A checkpoint error if they differ and that is not accepted.
    pub(crate) fn digest(&mut self, name: &'static str, digest: String) -> Result<()> {
        if let Some((path, before)) = self.saved(name)
            && *before != digest
        {
            let change = Change {
                field: name.to_owned(),
                before: before.clone(),
                now: digest.clone(),
            };
            self.compare(path, &[], &[change])?;
            self.new_loss = true;
        }
        self.facts.insert(name.to_owned(), digest);
        Ok(())
    }

    /// Returns `true` if the losses of the state are those of another objective or of other data.
    pub(crate) fn new_loss(&self) -> bool {
        self.new_loss
    }

    /// Returns the digests of the files, by their names.
    pub(crate) fn files(&self) -> Vec<String> {
        let files = self.facts.iter().filter(|(name, _)| *name != RECIPE);
        files.map(|(name, digest)| format!("{name} {digest}")).collect()
    }

    /// Returns the facts of the run's snapshots.
    pub(crate) fn facts(&self) -> &BTreeMap<String, String> {
        &self.facts
    }

    fn saved(&self, name: &str) -> Option<(&Path, &String)> {
        let (path, facts) = self.saved.as_ref()?;
        Some((path, facts.get(name)?))
    }

    fn compare(&self, path: &Path, fixed: &[&str], changes: &[Change]) -> Result<()> {
        let is_fixed = |change: &&Change| fixed.iter().any(|name| covers(name, &change.field));
        let is_accepted = |change: &&Change| self.accepted.iter().any(|name| covers(name, &change.field));
        let list = |changes: &[&Change]| changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let changed: Vec<&Change> = changes.iter().filter(is_fixed).collect();
        if !changed.is_empty() {
            let remedy = "these cannot change within a run: set them back, or start in another folder";
            let reason = format!("it is of another recipe: {}; {remedy}", list(&changed));
            return Err(Error::config(path, reason));
        }
        let changed: Vec<&Change> = changes.iter().filter(|change| !is_accepted(change)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = changed.iter().map(|change| change.field.as_str()).collect();
        let reason = format!(
            "it is of another recipe: {}; set them back, go on with the new ones by `accept_changes = {names:?}` \
             in the recipe, or start in another folder",
            list(&changed)
        );
        Err(Error::config(path, reason))
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Recipe {
        seed: u64,
        out: String,
        rate: Rate,
        rank: i64,
        #[serde(default)]
        sizes: Option<Vec<u32>>,
        #[serde(default)]
        accept_changes: Vec<String>,
    }

    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Rate {
        peak: f64,
        floor: f64,
    }

    impl Comparable for Recipe {
        const FREE: &'static [&'static str] = &["out", "accept_changes"];
        const FIXED: &'static [&'static str] = &["rank"];
        const OPEN: &'static [&'static str] = &[];
        const FILES: &'static [&'static str] = &["model files"];
        const LOSS: &'static [&'static str] = &["sizes"];

        fn accepted(&self) -> &[String] {
            &self.accept_changes
        }
    }

    fn recipe() -> Recipe {
        Recipe {
            seed: 0,
            out: "a".to_owned(),
            rate: Rate { peak: 1e-3, floor: 0.1 },
            rank: 4,
            sizes: None,
            accept_changes: Vec::new(),
        }
    }

    /// Compares a recipe with a state of `recipe()`; returns the error's reason.
    fn compare(recipe: &Recipe) -> std::result::Result<(), String> {
        let facts = BTreeMap::from([(RECIPE.to_owned(), text(&self::recipe()).unwrap())]);
        let identity = Identity {
            saved: Some((PathBuf::from("state"), facts)),
            accepted: recipe.accepted().to_vec(),
            facts: BTreeMap::new(),
            new_loss: false,
        };
        let changes = changes(&self::recipe(), recipe).unwrap();
        identity
            .compare(Path::new("state"), Recipe::FIXED, &changes)
            .map_err(|e| std::error::Error::source(&e).unwrap().to_string())
    }

    #[test]
    fn fields_that_differ_are_named_with_their_values() {
        let mut changed = recipe();
        (changed.seed, changed.rate.peak, changed.out) = (1, 5e-4, "b".to_owned());
        changed.sizes = Some(vec![64]);
        let error = compare(&changed).unwrap_err();
        let named = "rate.peak was 0.001 and is 0.0005, seed was 0 and is 1, sizes was not set and is [64]; ";
        assert!(error.contains(named), "{error}");
        assert!(
            error.contains(r#"`accept_changes = ["rate.peak", "seed", "sizes"]`"#),
            "{error}"
        );
    }

    #[test]
    fn fields_are_accepted_by_their_name_or_by_that_of_their_table() {
        let mut changed = recipe();
        (changed.seed, changed.rate.peak, changed.rate.floor) = (1, 5e-4, 0.2);
        changed.accept_changes = vec!["rate".to_owned()];
        let error = compare(&changed).unwrap_err();
        assert!(error.contains("seed") && !error.contains("rate"), "{error}");
        changed.accept_changes.push("seed".to_owned());
        compare(&changed).unwrap();
        changed.accept_changes = vec!["rat".to_owned(), "seed".to_owned(), "rate.peak".to_owned()];
        assert!(compare(&changed).unwrap_err().contains("rate.floor was 0.1"));
    }

    #[test]
    fn fixed_fields_are_not_accepted() {
        let mut changed = recipe();
        (changed.rank, changed.accept_changes) = (8, vec!["rank".to_owned()]);
        let error = compare(&changed).unwrap_err();
        assert!(error.contains("rank was 4 and is 8; these cannot change"), "{error}");
    }

    #[test]
    fn a_state_of_another_objective_or_other_files_has_another_loss() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let new_loss = |recipe: &Recipe, files: &str| {
            let mut before = Identity::new(&self::recipe(), None).unwrap();
            before.digest("model files", "a".to_owned()).unwrap();
            Snapshot::save_learners(&path, &[], Vec::new(), 1, before.facts()).unwrap();
            let mut identity = Identity::new(recipe, Some(&Snapshot::open(&path).unwrap())).unwrap();
            identity.digest("model files", files.to_owned()).unwrap();
            identity.new_loss()
        };
        let mut changed = recipe();
        changed.accept_changes = ["seed", "sizes", "model files"].map(str::to_owned).to_vec();
        changed.seed = 1;
        assert!(!new_loss(&changed, "a"));
        assert!(new_loss(&changed, "b"));
        changed.sizes = Some(vec![64]);
        assert!(new_loss(&changed, "a"));
    }
}
