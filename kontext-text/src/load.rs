//! An encoder's configuration: from its file, or from the shapes of its tensors.

use std::path::Path;

use kontext_core::{Error, Kind, Result, read_json};
use kontext_nn::Weights;
use serde::de::DeserializeOwned;

/// Reads `config.json` of a folder; `None` for a single file and a folder without one.
pub(crate) fn config<C: DeserializeOwned>(path: &Path) -> Result<Option<C>> {
    let file = path.join("config.json");
    file.is_file().then(|| read_json(file)).transpose()
}

/// Number of `{prefix}{index}.` among names, counting up from zero.
pub(crate) fn count_layers(weights: &Weights, prefix: &str) -> i64 {
    let names = weights.names();
    let present = |index: i64| {
        names.iter().any(|n| {
            n.strip_prefix(prefix)
                .is_some_and(|r| r.starts_with(&format!("{index}.")))
        })
    };
    (0..).take_while(|&index| present(index)).count() as i64
}

/// The stored shape of a matrix of which the configuration is inferred.
pub(crate) fn matrix(weights: &Weights, name: &str) -> Result<[i64; 2]> {
    let missing = || kontext_core::CheckpointError::Missing {
        name: name.to_owned(),
        nearest: None,
    };
    let shape = weights
        .shape_of(name)
        .ok_or_else(missing)
        .map_err(Error::checkpoint(weights.path()))?;
    let wrong = |_| {
        Error::config(
            weights.path(),
            format!("tensor `{name}` has shape {shape:?}, expected a matrix"),
        )
    };
    <[i64; 2]>::try_from(shape.as_slice()).map_err(wrong)
}

/// Wider, or with more words, and deeper than any text encoder: a damaged number is told before it
/// takes memory or time.
pub(crate) const WIDEST: i64 = 1 << 20;
pub(crate) const MOST_LAYERS: i64 = 1000;

/// Checks sizes, given with their names and the largest that each can be.
pub(crate) fn in_range(path: &Path, sizes: &[(&str, i64, i64)]) -> Result<()> {
    match sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
        Some((name, size, most)) => Err(Error::config(path, format!("`{name}` is {size}, expected 1 to {most}"))),
        None => Ok(()),
    }
}

/// Computing needs a floating-point kind of at least 16 bits.
pub(crate) fn computes(compute: Kind) -> Result<()> {
    match compute {
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 => Ok(()),
        other => Err(Error::invalid(
            "compute kind",
            "Float, Double, Half or BFloat16",
            format!("{other:?}"),
        )),
    }
}
