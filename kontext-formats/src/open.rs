//! Opening files of tensors: a single one, or a folder with its shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kontext_core::{CheckpointError, Error, Result, read_json};
use serde::Deserialize;

use super::file::WeightFile;
use super::store::Source;
use super::{Entry, Store, side_tensors};

/// File stems under which diffusers and transformers save the weights of a part.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// Their names for files of another dtype, next to the first or instead of it.
const VARIANTS: [&str; 2] = ["bf16", "fp16"];

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Store {
    /// Opens a safetensors or GGUF file, an `*.index.json`, or a folder that holds one under the names that
    /// diffusers and transformers use, variants (`bf16`, `fp16`) included. Files are memory-mapped; nothing is
    /// read yet.
    ///
    /// Side tensors of quantisation (the scales of fp8, bitsandbytes' states) belong to their weights and have no
    /// names here.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be opened; [`Error::Checkpoint`] if the folder has no weights, a header is
    /// damaged, or a shard lacks a tensor that the index names.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { find(path)? } else { path.to_owned() };
        if file.extension().is_some_and(|e| e == "json") {
            open_sharded(&file)
        } else {
            open_single(&file)
        }
    }

    /// The prefix of the part that has one of these tensors, if it has one.
    #[must_use]
    pub fn part_prefix(&self, signs: &[&str]) -> Option<String> {
        let names = self.names();
        let prefix_of = |name: &str| {
            let prefix = signs.iter().find_map(|sign| name.strip_suffix(sign))?;
            (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
        };
        let shortest = names.iter().filter_map(|name| prefix_of(name)).min_by_key(String::len);
        shortest.filter(|prefix| !prefix.is_empty())
    }

    /// Returns `true` if [`Store::open`] would find weights in this folder.
    #[must_use]
    pub fn found_in(folder: impl AsRef<Path>) -> bool {
        find(folder.as_ref()).is_ok()
    }

    /// Returns the metadata of the files' headers.
    #[must_use]
    pub fn metadata(&self) -> BTreeMap<String, String> {
        match &self.source {
            Source::Files { files, .. } => files.iter().flat_map(|file| file.text().clone()).collect(),
            Source::Memory(_) | Source::Synthetic { .. } => BTreeMap::new(),
        }
    }
}

fn find(folder: &Path) -> Result<PathBuf> {
    let candidates = |stem: &str| {
        let plain = [format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors")];
        let variants = VARIANTS.iter().flat_map(move |variant| {
            [
                format!("{stem}.safetensors.index.{variant}.json"),
                format!("{stem}.{variant}.safetensors"),
            ]
        });
        plain.into_iter().chain(variants.collect::<Vec<_>>())
    };
    let names: Vec<String> = STEMS.iter().flat_map(|stem| candidates(stem)).collect();
    names
        .iter()
        .map(|n| folder.join(n))
        .find(|p| p.is_file())
        .ok_or_else(|| {
            let looked = STEMS
                .iter()
                .flat_map(|stem| candidates(stem).take(2))
                .collect::<Vec<_>>()
                .join(", ");
            let looked = format!("{looked}, and their variants {}", VARIANTS.join(" and "));
            Error::checkpoint(folder)(CheckpointError::MissingPart {
                part: "weights",
                looked,
            })
        })
}

fn open_sharded(index_path: &Path) -> Result<Store> {
    let index: Index = read_json(index_path)?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    // A shard is a plain file name beside its index; anything else could read files outside the folder.
    if let Some(bad) = shards
        .iter()
        .find(|s| Path::new(s.as_str()).file_name() != Some(s.as_ref()))
    {
        let reason = format!("shard `{bad}` is not a plain file name; fetch the index again, from those who made it");
        return Err(Error::config(index_path, reason));
    }
    let folder = index_path.parent().unwrap_or(Path::new("."));
    let absent = |shard: &&&String| !folder.join(shard).is_file();
    if let Some(shard) = shards.iter().find(absent) {
        let looked = format!("`{shard}`, which the index names");
        return Err(Error::checkpoint(index_path)(CheckpointError::MissingPart {
            part: "shard",
            looked,
        }));
    }
    let files = shards
        .iter()
        .map(|s| WeightFile::open(&folder.join(s)))
        .collect::<Result<Vec<_>>>()?;
    let numbers: BTreeMap<&String, usize> = shards
        .iter()
        .enumerate()
        .map(|(number, shard)| (*shard, number))
        .collect();
    let mut entries = entries(&files);
    for (name, shard) in &index.weight_map {
        // If two shards hold a tensor, the one that the index names is used.
        let stored = numbers
            .get(shard)
            .and_then(|&number| Some((number, files.get(number)?.tensors().get(name)?)));
        let Some((file, stored)) = stored else {
            let reason = format!("shard `{shard}` lacks the tensor `{name}` that its index names; fetch both again");
            return Err(Error::config(index_path, reason));
        };
        entries.insert(name.clone(), Entry::new(file, name, stored));
    }
    over_files(index_path, files, entries)
}

fn open_single(path: &Path) -> Result<Store> {
    let files = vec![WeightFile::open(path)?];
    let entries = entries(&files);
    over_files(path, files, entries)
}

fn over_files(path: &Path, files: Vec<WeightFile>, mut entries: BTreeMap<String, Entry>) -> Result<Store> {
    side_tensors::fold(&files, &mut entries)?;
    Ok(Store::over(
        path.to_owned(),
        Source::Files {
            files: Arc::new(files),
            entries,
        },
    ))
}

/// Lists all tensors of all files.
fn entries(files: &[WeightFile]) -> BTreeMap<String, Entry> {
    let entries_of_file = |(file, source): (usize, &WeightFile)| -> Vec<(String, Entry)> {
        source
            .tensors()
            .iter()
            .map(|(name, stored)| (name.clone(), Entry::new(file, name, stored)))
            .collect()
    };
    files.iter().enumerate().flat_map(entries_of_file).collect()
}
