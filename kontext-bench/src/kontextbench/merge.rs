//! Merging of a run's shards, each in its own folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result};

use super::{Bench, Pair, RunFolder, report};

/// Number of names listed in a message.
const SHOWN: usize = 5;

/// Merges the shards of a run into a new folder and writes the report; returns its path.
///
/// The new folder is byte-identical to an unsharded run, except for the times.
///
/// # Errors
/// [`Error::InvalidArgument`] if the shards are not of one run (another model, seed, setting or bench), a
/// pair is in none of them or in two, one holds a pair that is not in the bench, or `out` is not empty; all
/// are named. [`Error::Io`] if a folder cannot be read or written.
pub fn merge(bench: &Bench, shards: &[PathBuf], out: impl AsRef<Path>) -> Result<PathBuf> {
    let out = out.as_ref();
    let shards = shards.iter().map(RunFolder::open).collect::<Result<Vec<_>>>()?;
    let refuse = |expected: &str, got: String| Err(Error::invalid("shards", expected, got));
    let Some(first) = shards.first() else {
        return refuse("at least one", "none".to_owned());
    };
    let info = first.info()?;
    for other in &shards[1..] {
        if let Some(difference) = info.difference(&other.info()?) {
            let (a, b) = (first.path().display(), other.path().display());
            return refuse("shards of one run", format!("{a} and {b}: {difference}"));
        }
    }
    if info.bench != bench.digest() {
        return refuse(
            "a run of this bench",
            format!("{}, which is of another", first.path().display()),
        );
    }
    let places = places(bench, &shards)?;
    let named = |pairs: Vec<String>| {
        let more = if pairs.len() > SHOWN { ", …" } else { "" };
        format!(
            "{}{more}",
            pairs.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ")
        )
    };
    let doubles: Vec<String> = bench
        .pairs
        .iter()
        .filter_map(|pair| Some((pair, places.get(pair.key.as_str())?)))
        .filter(|(_, places)| places.len() > 1)
        .map(|(pair, places)| {
            let folders: Vec<String> = places
                .iter()
                .map(|folder| folder.path().display().to_string())
                .collect();
            format!("{:?} in {}", pair.key, folders.join(" and "))
        })
        .collect();
    if !doubles.is_empty() {
        return refuse(
            "every pair once",
            format!("{} of them more than once: {}", doubles.len(), named(doubles)),
        );
    }
    let holes = bench
        .pairs
        .iter()
        .filter(|pair| !places.contains_key(pair.key.as_str()));
    let holes: Vec<String> = holes.map(|pair| format!("{:?}", pair.key)).collect();
    if !holes.is_empty() {
        return refuse(
            "every pair once",
            format!("{} of them not at all: {}", holes.len(), named(holes)),
        );
    }
    if out.exists() && fs::read_dir(out).map_err(Error::io(out))?.next().is_some() {
        return Err(Error::invalid("output folder", "a new or empty folder", out.display()));
    }
    let (folder, writer) = RunFolder::create(out, &info)?;
    let mut records = Vec::with_capacity(bench.pairs.len());
    for pair in &bench.pairs {
        let Some(from) = places.get(pair.key.as_str()).and_then(|places| places.first()) else {
            continue;
        };
        let Some(record) = from.record(pair) else { continue };
        let path = from.image(pair);
        let png = fs::read(&path).map_err(Error::io(path))?;
        writer.pair(pair, &png, from.timing(pair).as_ref(), &record)?;
        records.push(record);
    }
    report::write(bench, &folder, &writer, &records)
}

/// Returns the folders that hold each pair's result. A record with a damaged image does not count.
fn places<'a>(bench: &'a Bench, shards: &'a [RunFolder]) -> Result<BTreeMap<&'a str, Vec<&'a RunFolder>>> {
    let pairs: BTreeMap<String, &Pair> = bench.pairs.iter().map(|pair| (pair.file_stem(), pair)).collect();
    let mut places = BTreeMap::<&str, Vec<&RunFolder>>::new();
    for folder in shards {
        for stem in folder.stems()? {
            let Some(pair) = pairs.get(&stem) else {
                let got = format!("{stem} in {}", folder.path().display());
                return Err(Error::invalid("shards", "results of the bench's pairs", got));
            };
            if folder.record(pair).is_some() {
                places.entry(&pair.key).or_default().push(folder);
            }
        }
    }
    Ok(places)
}
