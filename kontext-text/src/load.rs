//! Configuration of an encoder, read from its file or inferred from tensor shapes.

use std::path::Path;

use kontext_core::{Error, Kind, Result, range, read_json, wrong_class};
use kontext_nn::Weights;
use serde::de::DeserializeOwned;

/// Reads the `config.json` of a folder; `None` for a single file or a folder without one.
pub(crate) fn config<C: DeserializeOwned>(path: &Path) -> Result<Option<C>> {
    let file = path.join("config.json");
    file.is_file().then(|| read_json(file)).transpose()
}

/// Counts the consecutive indices, from zero, for which a name starts with `{prefix}{index}.`.
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

/// Returns the stored shape of a matrix, to infer the configuration from.
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
            format!(
                "tensor `{name}` has shape {shape:?}, expected a matrix; the file is of another model, fetch the right one"
            ),
        )
    };
    <[i64; 2]>::try_from(shape.as_slice()).map_err(wrong)
}

/// Upper bound of widths and vocabulary sizes, above those of any text encoder: a damaged value is reported
/// before it costs memory or time.
pub(crate) const WIDEST: i64 = 1 << 20;
/// Bounds of the epsilons of norms; those of published encoders are 1e-6 and 1e-5.
pub(crate) const EPSILONS: std::ops::RangeInclusive<f64> = 0.0..=0.1;
/// Upper bound of the number of layers.
pub(crate) const MOST_LAYERS: i64 = 1000;

/// Checks sizes, given as (name, size, maximum); the minimum is 1.
pub(crate) fn in_range(path: &Path, sizes: &[(&'static str, i64, i64)]) -> Result<()> {
    let mut checked = sizes
        .iter()
        .map(|(name, size, most)| range::within(name, *size, 1..=*most));
    checked
        .try_for_each(|size| size.map(drop))
        .map_err(Error::in_config(path))
}

/// Checks the `model_type` of a configuration; one without it is accepted.
pub(crate) fn of_type(got: Option<&str>, expected: &[&str]) -> Result<(), String> {
    wrong_class("model_type", got, expected).map_or(Ok(()), Err)
}

/// Checks that `compute` is a floating-point dtype of at least 16 bits.
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
