//! Opening weights: one file, a sharded folder, or a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::Deserialize;

use super::file::WeightFile;
use super::{Entry, Source, Weights, companions, lock};
use crate::{CheckpointError, Error, Result, read_json};

/// The stems under which diffusers and transformers save the weights of a part.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// What they call files of another dtype beside the first, or in its place.
const VARIANTS: [&str; 2] = ["bf16", "fp16"];

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens a safetensors or GGUF file, an `*.index.json`, or a folder that holds one under the names that
    /// diffusers and transformers use, variants (`bf16`, `fp16`) included. Files are memory-mapped; nothing is
    /// read yet.
    ///
    /// Factors and states of quantisation (scaled fp8, bitsandbytes) belong to their weights: they have no names
    /// of their own here.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be opened, [`Error::Checkpoint`] where the folder has no
    /// weights, or a header is damaged, or a shard lacks a tensor that the index names.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { find(path)? } else { path.to_owned() };
        if file.extension().is_some_and(|e| e == "json") {
            open_sharded(&file)
        } else {
            open_single(&file)
        }
    }

    /// The same files under other names: each tensor is called what `rename` makes of its name, and those of
    /// which it makes nothing are left out.
    ///
    /// # Example
    /// ```no_run
    /// use kontext_core::Weights;
    /// // The transformer of a file that holds a whole model.
    /// let all = Weights::open("flux1-kontext-all-in-one.safetensors")?;
    /// let transformer = all.renamed(|name| Some(name.strip_prefix("model.diffusion_model.")?.to_owned()));
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    #[must_use]
    pub fn renamed(self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let source = match &self.store.source {
            Source::Files { files, entries } => {
                let renamed = entries
                    .iter()
                    .filter_map(|(name, entry)| Some((rename(name)?, entry.clone())));
                Source::Files {
                    files: Arc::clone(files),
                    entries: renamed.collect(),
                }
            }
            Source::Memory(tensors) => {
                let tensors = lock(tensors);
                let renamed = tensors
                    .iter()
                    .filter_map(|(name, value)| Some((rename(name)?, value.shallow_clone())));
                Source::Memory(Mutex::new(renamed.collect()))
            }
            Source::Synthetic { .. } => return self,
        };
        let store = Self::over(self.store.path.clone(), source).store;
        Self { store, ..self }
    }

    /// The part of the weights that has one of these tensors: what stands before the sign's name is taken from
    /// all names, and tensors that lack it are left out. Without any of the signs, all weights as they are.
    ///
    /// So a part is found in a file of its own and in one that holds a whole model.
    #[must_use]
    pub fn part(self, signs: &[&str]) -> Self {
        let names = self.names();
        let before = |name: &str| {
            let sign = signs.iter().find_map(|sign| name.strip_suffix(sign))?;
            (sign.is_empty() || sign.ends_with('.')).then(|| sign.to_owned())
        };
        match names.iter().filter_map(|name| before(name)).min_by_key(String::len) {
            Some(prefix) if !prefix.is_empty() => {
                self.renamed(|name| Some(name.strip_prefix(prefix.as_str())?.to_owned()))
            }
            _ => self,
        }
    }

    /// Weights that are made up: each tensor is drawn from the seed and its own name.
    ///
    /// Matrices have variance 1 / fan-in, norm weights are near 1 and biases near 0. Each tensor
    /// is `torch.randn` with seed `crc32(name) + seed`, so other programs can make the same ones
    /// (`tests/reference/synthetic.py` in the repository does). [`Weights::shapes`] tells what was
    /// made, [`crate::weights::save`] writes it.
    #[must_use]
    pub fn synthetic(seed: u64) -> Self {
        Self::over(
            PathBuf::from("synthetic"),
            Source::Synthetic {
                seed: Some(seed),
                made: Default::default(),
            },
        )
    }

    /// Weights of zeros that take no memory: a model built on them is an account of the tensors
    /// that it needs, by [`Weights::shapes`].
    #[must_use]
    pub fn blank() -> Self {
        Self::over(
            PathBuf::from("blank"),
            Source::Synthetic {
                seed: None,
                made: Default::default(),
            },
        )
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
            Source::Files { files, .. } => files.iter().flat_map(|file| file.text().clone()).collect(),
            Source::Memory(_) | Source::Synthetic { .. } => BTreeMap::new(),
        }
    }
}

fn find(folder: &Path) -> Result<PathBuf> {
    let of = |stem: &str| {
        let plain = [format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors")];
        let variants = VARIANTS.iter().flat_map(move |variant| {
            [
                format!("{stem}.safetensors.index.{variant}.json"),
                format!("{stem}.{variant}.safetensors"),
            ]
        });
        plain.into_iter().chain(variants.collect::<Vec<_>>())
    };
    let names: Vec<String> = STEMS.iter().flat_map(|stem| of(stem)).collect();
    names
        .iter()
        .map(|n| folder.join(n))
        .find(|p| p.is_file())
        .ok_or_else(|| {
            let looked = STEMS
                .iter()
                .flat_map(|stem| of(stem).take(2))
                .collect::<Vec<_>>()
                .join(", ");
            let looked = format!("{looked}, and their variants {}", VARIANTS.join(" and "));
            Error::checkpoint(folder)(CheckpointError::MissingPart {
                part: "weights",
                looked,
            })
        })
}

fn open_sharded(index_path: &Path) -> Result<Weights> {
    let index: Index = read_json(index_path)?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    // A shard is a plain file name beside its index; anything else could read files elsewhere.
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
        // Where two shards hold a tensor, the one that the index names counts.
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

fn open_single(path: &Path) -> Result<Weights> {
    let files = vec![WeightFile::open(path)?];
    let entries = entries(&files);
    over_files(path, files, entries)
}

fn over_files(path: &Path, files: Vec<WeightFile>, mut entries: BTreeMap<String, Entry>) -> Result<Weights> {
    companions::fold(&files, &mut entries)?;
    Ok(Weights::over(
        path.to_owned(),
        Source::Files {
            files: Arc::new(files),
            entries,
        },
    ))
}

/// All tensors of all files.
fn entries(files: &[WeightFile]) -> BTreeMap<String, Entry> {
    let of = |(file, source): (usize, &WeightFile)| -> Vec<(String, Entry)> {
        source
            .tensors()
            .iter()
            .map(|(name, stored)| (name.clone(), Entry::new(file, name, stored)))
            .collect()
    };
    files.iter().enumerate().flat_map(of).collect()
}
