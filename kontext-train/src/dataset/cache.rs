//! An on-disk cache of tensors by name: the outputs of the frozen encoders, computed once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result, Tensor, create_folder};
use kontext_nn::Weights;

/// A folder of numbered, memory-mapped safetensors files.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    shards: Vec<Weights>,
    index: HashMap<String, usize>,
}

impl Cache {
    /// Opens the folder; creates it if missing.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        create_folder(folder)?;
        let mut cache = Self {
            folder: folder.to_owned(),
            shards: Vec::new(),
            index: HashMap::new(),
        };
        while cache.shard_path().is_file() {
            cache.take(Weights::open(cache.shard_path())?);
        }
        Ok(cache)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Returns the tensor of this name, on the host.
    pub(crate) fn get(&self, name: &str) -> Result<Tensor> {
        let shard = self.index.get(name).and_then(|&shard| self.shards.get(shard));
        let shard = shard.ok_or_else(|| Error::config(&self.folder, format!("no `{name}` in the cache; delete it")))?;
        shard.raw(name)
    }

    /// Writes tensors as the next shard.
    pub(crate) fn append(&mut self, tensors: &[(String, Tensor)]) -> Result<()> {
        let path = self.shard_path();
        kontext_formats::save(&path, tensors, None)?;
        self.take(Weights::open(path)?);
        Ok(())
    }

    fn take(&mut self, shard: Weights) {
        let number = self.shards.len();
        self.index.extend(shard.names().into_iter().map(|name| (name, number)));
        self.shards.push(shard);
    }

    /// Returns the path of the next shard.
    fn shard_path(&self) -> PathBuf {
        self.folder.join(format!("{:05}.safetensors", self.shards.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |value: f32| Tensor::from_slice(&[value]);
        let mut cache = Cache::open(folder.path()).unwrap();
        cache.append(&[("make it \"red\"".to_owned(), tensor(1.0))]).unwrap();
        cache.append(&[("b".to_owned(), tensor(2.0))]).unwrap();
        let again = Cache::open(folder.path()).unwrap();
        assert!(again.contains("b") && !again.contains("c"));
        assert!(again.get("make it \"red\"").unwrap().equal(&tensor(1.0)));
    }
}
