//! The files that a model is read from.

use std::path::{Path, PathBuf};

use kontext_core::Result;
use kontext_nn::Weights;
use kontext_text::Tokenizer;

use super::{Checkpoint, opened_transformer};

impl Checkpoint {
    /// Lists the files that loading the model reads: of each part the weights with all shards, their index and
    /// the configuration that counts, the tokenizers' files, the scheduler's configuration, `kontext.json` and
    /// `model_index.json`. A file with several parts is there once for each. Reads only headers.
    ///
    /// # Errors
    /// Those of [`Weights::open`], and those of [`Checkpoint::open_transformer`] for its configuration.
    ///
    /// # Example
    /// ```
    /// use kontext::{Checkpoint, Layout};
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let folder = folder.path();
    /// kontext::random_model(folder, 7, Layout::Diffusers)?;
    /// std::fs::write(folder.join("vae/notes.txt"), "not read").unwrap();
    /// let files = Checkpoint::find(folder)?.files()?;
    /// assert!(files.contains(&folder.join("vae/config.json")));
    /// assert!(!files.contains(&folder.join("vae/notes.txt")));
    /// # Ok::<(), kontext::Error>(())
    /// ```
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let index = Some(self.folder.join("model_index.json")).filter(|path| path.is_file());
        let files = self.files_by_role()?.into_iter().flat_map(|(_, files)| files);
        Ok(files.chain(index).collect())
    }

    /// Lists the files that the model's images depend on, by what they are to the model.
    pub(super) fn files_by_role(&self) -> Result<Vec<(&'static str, Vec<PathBuf>)>> {
        let (weights, config) = opened_transformer(&self.transformer)?;
        let mut roles = vec![
            ("transformer", files_of(&weights)),
            ("transformer configuration", config.into_iter().collect()),
        ];
        let there = |path: PathBuf| if path.is_file() { vec![path] } else { Vec::new() };
        for (role, configuration, path) in [
            ("VAE", "VAE configuration", &self.vae),
            ("CLIP", "CLIP configuration", &self.clip),
            ("T5", "T5 configuration", &self.t5),
        ] {
            roles.push((role, weights_files(path)?));
            roles.push((configuration, there(path.join("config.json"))));
        }
        roles.extend([
            ("CLIP tokenizer", Tokenizer::files(&self.clip_tokenizer)),
            ("T5 tokenizer", Tokenizer::files(&self.t5_tokenizer)),
            ("scheduler", self.scheduler.iter().cloned().collect()),
            ("defaults", there(self.folder.join("kontext.json"))),
        ]);
        Ok(roles)
    }
}

/// Lists the files of weights that a path opens: all shards of a set, and its index.
pub(super) fn weights_files(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(files_of(&Weights::open(path)?))
}

fn files_of(weights: &Weights) -> Vec<PathBuf> {
    let store = weights.store();
    let mut files = store.files();
    // The index of a sharded set says which shard counts for a tensor.
    if store.path().is_file() && !files.iter().any(|file| file == store.path()) {
        files.push(store.path().to_owned());
    }
    files
}
