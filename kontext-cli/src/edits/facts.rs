//! Seed and settings that all edits of a folder share.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;
use kontext_bench::kontextbench::difference;
use kontext_core::read_json;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::workspace::Workspace;

/// Name of the file.
const NAME: &str = "edits.json";
/// Hexadecimal digits of the settings' digest.
const DIGITS: usize = 16;

/// Contents of `edits.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// The run's seed, of which those of edits derive.
    pub(super) seed: u64,
    /// Model, device and options of loading, by name.
    pub(super) settings: BTreeMap<String, String>,
}

impl Facts {
    /// Returns the facts of a run into a folder: its own seed, else the folder's, else a new one.
    ///
    /// # Errors
    /// If the folder has other facts and `overwrite` is not set.
    pub(super) fn expected(
        folder: &Path,
        seed: Option<u64>,
        settings: &BTreeMap<String, String>,
        overwrite: bool,
    ) -> anyhow::Result<Self> {
        let path = folder.join(NAME);
        let there: Option<Self> = path.is_file().then(|| read_json(&path)).transpose()?;
        let recorded = there.as_ref().map(|facts| facts.seed);
        // 32 bits, because `torch.Generator` takes no more.
        let drawn = || u64::from(rand::random::<u32>());
        let expected = Self {
            seed: seed.or(recorded).unwrap_or_else(drawn),
            settings: settings.clone(),
        };
        let differs = there.and_then(|there| difference(&there.by_name(), &expected.by_name()));
        if let Some(difference) = differs.filter(|_| !overwrite) {
            bail!(
                "the edits in {} are of another run: {difference}; take another --out, or make them again by --overwrite",
                folder.display()
            );
        }
        Ok(expected)
    }

    /// Writes the facts if the folder has none, or others that are to be replaced, and returns those that are there
    /// then: a shard that started at the same time may have drawn another seed first.
    ///
    /// # Errors
    /// If the file cannot be written, or there are others that are not to be replaced.
    pub(super) fn settle(
        self,
        workspace: &mut Workspace,
        folder: &Path,
        seed: Option<u64>,
        overwrite: bool,
    ) -> anyhow::Result<Self> {
        let path = folder.join(NAME);
        if !path.exists() {
            workspace.publish_first(NAME, &self.text()?)?;
        }
        // Read again: since `expected`, another shard may have written the file.
        let facts = Self::expected(folder, seed, &self.settings, overwrite)?;
        if read_json::<Self>(&path).ok().as_ref() != Some(&facts) {
            workspace.publish(&[(NAME.to_owned(), facts.text()?)], None)?;
        }
        Ok(facts)
    }

    /// Returns the content of the file.
    fn text(&self) -> anyhow::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Returns a digest of the settings, for records.
    pub(super) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (name, value) in &self.settings {
            hash.update(format!("{name:?} {value:?}\n"));
        }
        format!("{:x}", hash.finalize()).chars().take(DIGITS).collect()
    }

    fn by_name(&self) -> BTreeMap<String, String> {
        let mut facts = self.settings.clone();
        facts.insert("seed".to_owned(), self.seed.to_string());
        facts
    }
}
