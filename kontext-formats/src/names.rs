//! Tensor names: translation between naming schemes, the nearest name to a missing one, and the check of
//! names to be written.

use std::collections::HashSet;

use kontext_core::{Error, Result};

/// Key of the text in a safetensors header, next to the tensors' names.
pub(crate) const RESERVED: &str = "__metadata__";

/// The source of a part's tensor in a file with another naming scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TensorMap {
    /// The tensor of this name, as it is (or with sizes of one added or removed: 1x1 convolutions and
    /// linears).
    Name(String),
    /// The rows of these tensors, concatenated (`to_q`, `to_k`, `to_v` for a fused `qkv`).
    Rows(Vec<String>),
    /// The tensor of this name with the halves of its rows swapped (`shift, scale` against `scale, shift`).
    SwapHalves(String),
}

impl TensorMap {
    /// Returns the names of the tensors to read.
    pub fn names(&self) -> &[String] {
        match self {
            TensorMap::Name(name) | TensorMap::SwapHalves(name) => std::slice::from_ref(name),
            TensorMap::Rows(names) => names,
        }
    }
}

/// Returns the shortest prefix of the tensor `sign` among the names of a file: empty if it has that very name,
/// with a dot at its end if the file holds more than the part, `None` if the file has no such tensor.
///
/// # Example
/// ```
/// use kontext_formats::prefix_before;
/// let names = ["model.diffusion_model.img_in.weight", "audio_img_in.bias"].map(str::to_owned);
/// assert_eq!(prefix_before(&names, "img_in.weight"), Some("model.diffusion_model."));
/// assert_eq!(prefix_before(&names, "img_in.bias"), None);
/// ```
#[must_use]
pub fn prefix_before<'a>(names: &'a [String], sign: &str) -> Option<&'a str> {
    let prefixes = names.iter().filter_map(|name| name.strip_suffix(sign));
    let prefixes = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    prefixes.min_by_key(|prefix| prefix.len())
}

/// A translation of a part's name for a tensor into a [`TensorMap`] over a file's names.
pub type NameMap = fn(&str) -> TensorMap;

/// Returns the name most similar to `wanted`, unless none is similar enough.
///
/// Few edits make names similar, and so does a long common prefix: the parts of a module rank nearer than the
/// same part of another module.
#[must_use]
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    /// Minimum similarity, of at most 2; below it a hint would mislead.
    const LIKE: f64 = 1.0;
    let likeness = |name: &str| {
        let common = wanted.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        strsim::normalized_levenshtein(wanted, name) + common as f64 / wanted.len().max(1) as f64
    };
    let best = names
        .map(|name| (likeness(name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= LIKE).then(|| best.1.to_owned())
}

/// Checks that the names of tensors to be written differ, and that none is the key of a file's metadata.
///
/// # Errors
/// [`Error::InvalidArgument`] with the name.
pub(crate) fn check_unique<'a>(names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if name == RESERVED {
            let expected = format!("names other than {RESERVED:?}, which holds a file's text");
            return Err(Error::invalid("names of tensors", expected, "one of that name"));
        }
        if !seen.insert(name) {
            return Err(Error::invalid(
                "names of tensors",
                "each once",
                format!("{name:?} twice"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_a_reader_would_pick() {
        let names = [
            "img_attn.norm.key_norm.weight",
            "img_attn.norm.query_norm.scale",
            "txt_in.bias",
        ];
        let hint = nearest("img_attn.norm.key_norm.scale", names.iter().copied());
        assert_eq!(hint.as_deref(), Some("img_attn.norm.key_norm.weight"));
        assert_eq!(nearest("zzz", names.iter().copied()), None);
    }
}
