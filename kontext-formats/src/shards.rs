//! Split files: their names (`model-00001-of-00003.safetensors`) and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result, read_json};
use serde::Deserialize;

/// An `*.index.json`: the shard of each tensor.
pub(super) struct Index {
    folder: PathBuf,
    /// File names of the shards.
    pub(super) shards: BTreeSet<String>,
    /// File name of the shard that holds a tensor, by the tensor's name.
    pub(super) weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Json {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let Json { weight_map } = read_json(path)?;
        let shards: BTreeSet<String> = weight_map.values().cloned().collect();
        // A shard is a plain file name next to its index; anything else could read files outside the folder.
        if let Some(bad) = shards
            .iter()
            .find(|s| Path::new(s.as_str()).file_name() != Some(s.as_ref()))
        {
            let reason =
                format!("shard `{bad}` is not a plain file name; fetch the index again, from those who made it");
            return Err(Error::config(path, reason));
        }
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self {
            folder,
            shards,
            weight_map,
        })
    }

    /// Returns the paths of the shards, by name.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| self.folder.join(shard)).collect()
    }
}

/// One of the numbered files of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shard {
    folder: PathBuf,
    stem: String,
    /// Number of files in the set.
    count: usize,
    suffix: String,
}

impl Shard {
    /// Reads the set from a file's name; `None` for the name of a whole file.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (first, rest) = name.rsplit_once("-of-")?;
        let (stem, index) = first.rsplit_once('-')?;
        let (count, suffix) = rest.split_at_checked(5)?;
        let number = |text: &str| -> Option<usize> {
            let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let (index, count) = (number(index)?, number(count)?);
        if !(1..=count).contains(&index) || !suffix.starts_with('.') {
            return None;
        }
        Some(Self {
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
            stem: stem.to_owned(),
            count,
            suffix: suffix.to_owned(),
        })
    }

    /// Returns the paths of all files of the set, in order.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let Self {
            folder,
            stem,
            count,
            suffix,
        } = self;
        (1..=*count).map(move |index| folder.join(format!("{stem}-{index:05}-of-{count:05}{suffix}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_set_follow_from_the_name_of_each() {
        let shard = Shard::of(Path::new("a/x-of-y-00002-of-00003.fp16.safetensors")).unwrap();
        let names = ["1", "2", "3"].map(|i| PathBuf::from(format!("a/x-of-y-0000{i}-of-00003.fp16.safetensors")));
        assert_eq!(shard.paths().collect::<Vec<_>>(), names);
        for whole in [
            "x.gguf",
            "x-1-of-2.gguf",
            "x-00003-of-00002.gguf",
            "x-00000-of-00002.gguf",
            "x-00001-of-00002",
            "one-of-them.safetensors",
            "x-0000é-of-00002.gguf",
        ] {
            assert_eq!(Shard::of(Path::new(whole)), None, "{whole}");
        }
    }
}
