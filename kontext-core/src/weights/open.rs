//! Opening weights: one file, a sharded folder, or a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::file::WeightFile;
use super::{Entry, Source, Weights};
use crate::{CheckpointError, Error, Result, read_json};

/// The stems under which diffusers and transformers save the weights of a part.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens a safetensors file, an `*.index.json`, or a folder that holds one of them under the
    /// names that diffusers and transformers use. Files are memory-mapped; nothing is read yet.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be opened, [`Error::Checkpoint`] where the folder has no
    /// weights, or a header is damaged, or a shard lacks a tensor that the index names.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { find(path)? } else { path.to_owned() };
        if file.extension().is_some_and(|e| e == "json") { open_sharded(&file) } else { open_single(&file) }
    }

    /// Weights that are made up: each tensor is drawn from the seed and its own name.
    ///
    /// Matrices have variance 1 / fan-in, norm weights are near 1 and biases near 0. Each tensor
    /// is `torch.randn` with seed `crc32(name) + seed`, so other programs can make the same ones
    /// (`tests/reference/synthetic.py` in the repository does). [`Weights::shapes`] tells what was
    /// made, [`crate::weights::save`] writes it.
    #[must_use]
    pub fn synthetic(seed: u64) -> Self {
        Self::over(PathBuf::from("synthetic"), Source::Synthetic { seed: Some(seed), made: Default::default() })
    }

    /// Weights of zeros that take no memory: a model built on them is an account of the tensors
    /// that it needs, by [`Weights::shapes`].
    #[must_use]
    pub fn blank() -> Self {
        Self::over(PathBuf::from("blank"), Source::Synthetic { seed: None, made: Default::default() })
    }

    /// Whether these are [`Weights::synthetic`] or [`Weights::blank`] ones.
    #[must_use]
    pub fn is_synthetic(&self) -> bool {
        matches!(self.store.source, Source::Synthetic { .. })
    }

    /// Whether `path` is or holds weights that [`Weights::open`] would find.
    #[must_use]
    pub fn found_in(folder: impl AsRef<Path>) -> bool {
        find(folder.as_ref()).is_ok()
    }

    /// The free text in the files' headers.
    #[must_use]
    pub fn metadata(&self) -> BTreeMap<String, String> {
        match &self.store.source {
            Source::Files { files, .. } => files.iter().flat_map(WeightFile::text).collect(),
            Source::Memory(_) | Source::Synthetic { .. } => BTreeMap::new(),
        }
    }
}

fn find(folder: &Path) -> Result<PathBuf> {
    let candidates = STEMS.iter().flat_map(|s| [format!("{s}.safetensors.index.json"), format!("{s}.safetensors")]);
    let names: Vec<String> = candidates.collect();
    names.iter().map(|n| folder.join(n)).find(|p| p.is_file()).ok_or_else(|| {
        let looked = names.join(", ");
        Error::checkpoint(folder)(CheckpointError::MissingPart { part: "weights", looked })
    })
}

fn open_sharded(index_path: &Path) -> Result<Weights> {
    let index: Index = read_json(index_path)?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    // A shard is a plain file name beside its index; anything else could read files elsewhere.
    if let Some(bad) = shards.iter().find(|s| Path::new(s.as_str()).file_name() != Some(s.as_ref())) {
        let reason = format!("shard `{bad}` is not a plain file name; fetch the index again, from those who made it");
        return Err(Error::config(index_path, reason));
    }
    let folder = index_path.parent().unwrap_or(Path::new("."));
    let absent = |shard: &&&String| !folder.join(shard).is_file();
    if let Some(shard) = shards.iter().find(absent) {
        let looked = format!("`{shard}`, which the index names");
        return Err(Error::checkpoint(index_path)(CheckpointError::MissingPart { part: "shard", looked }));
    }
    let files = shards.iter().map(|s| WeightFile::open(&folder.join(s))).collect::<Result<Vec<_>>>()?;
    let numbers: BTreeMap<&String, usize> = shards.iter().enumerate().map(|(number, shard)| (*shard, number)).collect();
    let mut entries = entries(&files);
    for (name, shard) in &index.weight_map {
        // Where two shards hold a tensor, the one that the index names counts.
        let info = numbers.get(shard).and_then(|&number| Some((number, files.get(number)?.entry(name)?)));
        let Some((file, (kind, shape))) = info else {
            let reason = format!("shard `{shard}` lacks the tensor `{name}` that its index names; fetch both again");
            return Err(Error::config(index_path, reason));
        };
        entries.insert(name.clone(), Entry { file, kind, shape });
    }
    Ok(Weights::over(index_path.to_owned(), Source::Files { files, entries }))
}

fn open_single(path: &Path) -> Result<Weights> {
    let files = vec![WeightFile::open(path)?];
    let entries = entries(&files);
    Ok(Weights::over(path.to_owned(), Source::Files { files, entries }))
}

/// All tensors of all files.
fn entries(files: &[WeightFile]) -> BTreeMap<String, Entry> {
    let of = |(file, source): (usize, &WeightFile)| {
        source.entries().into_iter().map(move |(name, kind, shape)| (name, Entry { file, kind, shape }))
    };
    files.iter().enumerate().flat_map(of).collect()
}
