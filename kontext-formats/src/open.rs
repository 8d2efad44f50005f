//! Opening files of tensors: a single one, or a folder with its shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kontext_core::{CheckpointError, Error, Result, printable};

use super::file::{WeightFile, regular};
use super::folder::{STEMS, quoted};
use super::shards::{Index, Shard};
use super::store::Source;
use super::{Entry, FolderListing, Store, prefix_before, side_tensors};

/// Their names for files of another dtype, next to the first or instead of it, in order of preference.
const VARIANTS: [&str; 3] = ["bf16", "fp16", "fp32"];

impl Store {
    /// Opens a safetensors or GGUF file, an `*.index.json`, or a folder that holds one: under the names that
    /// diffusers and transformers use, or the only one under any name ([`FolderListing`]). Of several
    /// variants, the one without a name, `bf16`, `fp16` and `fp32` are preferred in this order. A file that
    /// is one of a numbered set (`…-00001-of-00003…`) is opened with the others. Files are memory-mapped;
    /// nothing is read yet.
    ///
    /// Side tensors of quantisation (the scales of fp8, bitsandbytes' states) belong to their weights and
    /// have no names here.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be opened or is a pipe; [`Error::Checkpoint`] if the folder has no
    /// weights or several to choose from, a header is damaged, a shard is missing or lacks a tensor that the
    /// index names, or the weights are quantised in a form that is not read.
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
        let prefixes = signs.iter().filter_map(|sign| prefix_before(&names, sign));
        let shortest = prefixes.min_by_key(|prefix| prefix.len());
        shortest.filter(|prefix| !prefix.is_empty()).map(str::to_owned)
    }

    /// Returns `true` if [`Store::open`] would find weights in this folder.
    #[must_use]
    pub fn found_in(folder: impl AsRef<Path>) -> bool {
        let folder = folder.as_ref();
        FolderListing::of(folder).is_ok_and(|listing| usable(folder, &listing).is_some())
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

/// Returns the weights in a folder that can be opened, or those that explain best why they cannot.
fn find(folder: &Path) -> Result<PathBuf> {
    let listing = FolderListing::of(folder)?;
    // One under a name that counts, of which a shard is missing, says so when it is opened.
    let incomplete = || named(folder).find(|path| path.is_file());
    let path = usable(folder, &listing).or_else(incomplete);
    path.ok_or_else(|| no_weights(folder, &listing))
}

/// Returns the weights that a folder offers and that are taken first, if it is clear which.
fn usable(folder: &Path, listing: &FolderListing) -> Option<PathBuf> {
    if let Some(path) = named(folder).find(|path| listing.weights.contains(path)) {
        return Some(path);
    }
    match (listing.of_a_part().as_slice(), listing.weights.as_slice()) {
        ([path], _) => Some((*path).clone()),
        ([], [path]) => Some(path.clone()),
        _ => None,
    }
}

/// Lists the paths under which diffusers and transformers save weights, in the order of preference.
fn named(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let names = STEMS.iter().flat_map(|stem| {
        let plain = [format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors")];
        let variants = VARIANTS.iter().flat_map(move |variant| {
            [
                format!("{stem}.safetensors.index.{variant}.json"),
                format!("{stem}.{variant}.safetensors"),
            ]
        });
        plain.into_iter().chain(variants)
    });
    names.map(|name| folder.join(name))
}

/// Returns the error for a folder without weights, or with several to choose from.
fn no_weights(folder: &Path, listing: &FolderListing) -> Error {
    if !listing.weights.is_empty() {
        return Error::checkpoint(folder)(CheckpointError::Ambiguous {
            part: "the weights".to_owned(),
            found: listing.weights.iter().map(|path| quoted(path)).collect(),
            remedy: "name one of them".to_owned(),
        });
    }
    let looked = STEMS
        .map(|stem| format!("{stem}.safetensors.index.json, {stem}.safetensors"))
        .join(", ");
    Error::checkpoint(folder)(CheckpointError::MissingPart {
        part: "weights",
        looked: format!(
            "{looked}, their variants {}, or one file of weights",
            VARIANTS.join(", ")
        ),
        found: listing.unread(folder),
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
    let mut holders: BTreeMap<&String, Vec<&WeightFile>> = BTreeMap::new();
    for file in &files {
        file.tensors()
            .keys()
            .for_each(|name| holders.entry(name).or_default().push(file));
    }
    if let Some((name, holders)) = holders.iter().find(|(_, holders)| holders.len() > 1) {
        return Err(Error::checkpoint(path)(CheckpointError::Ambiguous {
            part: format!("the tensor `{}` of the set", printable(name)),
            found: holders.iter().map(|file| quoted(&file.path)).collect(),
            remedy: "fetch the set again".to_owned(),
        }));
    }
    let entries = entries(&files);
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
