//! Opening files of tensors: a single one, or a folder with its shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kontext_core::{CheckpointError, Error, Result};

use super::file::{WeightFile, regular};
use super::folder::{STEMS, quoted};
use super::shards::{Index, Shard};
use super::store::Source;
use super::{Entry, FolderListing, Store, side_tensors};

/// Their names for files of another dtype, next to the first or instead of it, in order of preference.
const VARIANTS: [&str; 3] = ["bf16", "fp16", "fp32"];

impl Store {
    /// Opens a safetensors or GGUF file, an `*.index.json`, or a folder that holds one: under the names that
    /// diffusers and transformers use, or the only one under any name ([`FolderListing`]). Of several variants,
    /// the one without a name, `bf16`, `fp16` and `fp32` are preferred in this order. A file that is one of a
    /// numbered set (`…-00001-of-00003…`) is opened with the others. Files are memory-mapped; nothing is read
    /// yet.
    ///
    /// Side tensors of quantisation (the scales of fp8, bitsandbytes' states) belong to their weights and have no
    /// names here.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be opened or is a pipe; [`Error::Checkpoint`] if the folder has no weights or
    /// several to choose from, a header is damaged, a shard is missing or lacks a tensor that the index names, or
    /// the weights are quantised in a form that is not read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { find(path)? } else { path.to_owned() };
        if file.extension().is_some_and(|e| e == "json") {
            regular(&file)?;
            open_sharded(&file)
        } else if let Some(shard) = Shard::of(&file) {
            open_set(&file, &shard)
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
    let names = STEMS.iter().flat_map(|stem| candidates(stem));
    if let Some(path) = names.map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(path);
    }
    let listing = FolderListing::of(folder)?;
    match (listing.of_a_part().as_slice(), listing.weights.as_slice()) {
        ([path], _) => Ok((*path).clone()),
        ([], [path]) => Ok(path.clone()),
        _ => Err(no_weights(folder, &listing)),
    }
}

/// Returns the error for a folder without weights, or with several to choose from.
fn no_weights(folder: &Path, listing: &FolderListing) -> Error {
    let looked = STEMS
        .map(|stem| format!("{stem}.safetensors.index.json, {stem}.safetensors"))
        .join(", ");
    let several = listing.weights.iter().map(|path| quoted(path)).collect::<Vec<_>>();
    let several = (!several.is_empty()).then(|| format!("{} (name one of them)", several.join(" and ")));
    Error::checkpoint(folder)(CheckpointError::MissingPart {
        part: "weights",
        looked: format!(
            "{looked}, their variants {}, or one file of weights",
            VARIANTS.join(", ")
        ),
        found: several.into_iter().chain(listing.unread()).collect(),
    })
}

fn missing_shard(path: &Path, shard: &Path, named: &str) -> Error {
    Error::checkpoint(path)(CheckpointError::MissingPart {
        part: "shard",
        looked: format!("{}, {named}", quoted(shard)),
        found: Vec::new(),
    })
}

/// Opens all files of a numbered set.
fn open_set(path: &Path, shard: &Shard) -> Result<Store> {
    // The named file first: if it is not there, no other is missed.
    regular(path)?;
    let paths: Vec<PathBuf> = shard.paths().collect();
    if let Some(absent) = paths.iter().find(|path| !path.is_file()) {
        return Err(missing_shard(path, absent, "another file of the same set"));
    }
    let files = paths
        .iter()
        .map(|path| WeightFile::open(path))
        .collect::<Result<Vec<_>>>()?;
    let entries = entries(&files);
    if entries.len() < files.iter().map(|file| file.tensors().len()).sum() {
        let reason = "two files of its set hold the same tensor; fetch the set again";
        return Err(Error::config(path, reason));
    }
    over_files(path, files, entries)
}

fn open_sharded(index_path: &Path) -> Result<Store> {
    let index = Index::read(index_path)?;
    let paths = index.paths();
    if let Some(absent) = paths.iter().find(|path| !path.is_file()) {
        return Err(missing_shard(index_path, absent, "which the index names"));
    }
    let shards = &index.shards;
    let files = paths
        .iter()
        .map(|path| WeightFile::open(path))
        .collect::<Result<Vec<_>>>()?;
    let numbers: BTreeMap<&String, usize> = shards
        .iter()
        .enumerate()
        .map(|(number, shard)| (shard, number))
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
    let file = WeightFile::open(path)?;
    if let Some((index, count)) = file.split() {
        let reason = format!(
            "it is file {index} of {count} of a split model; name the files `NAME-00001-of-{count:05}.gguf` and so on \
             again and put them into one folder, or join them with gguf-split --merge"
        );
        return Err(Error::checkpoint(path)(CheckpointError::Gguf { reason }));
    }
    let files = vec![file];
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
