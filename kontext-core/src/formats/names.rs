//! Tensor names: translation between namings, and the nearest name to a missing one.

/// Where the tensor that a part asks for stands in a file that names things differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipe {
    /// Under this name, as it is (or with sizes of one added or removed: 1x1 convolutions and linears).
    Name(String),
    /// The rows of these tensors one after the other (`to_q`, `to_k`, `to_v` for a fused `qkv`).
    Rows(Vec<String>),
    /// Under this name with its halves of rows exchanged (`shift, scale` against `scale, shift`).
    SwapHalves(String),
}

impl Recipe {
    /// The names that the recipe reads.
    pub fn names(&self) -> &[String] {
        match self {
            Recipe::Name(name) | Recipe::SwapHalves(name) => std::slice::from_ref(name),
            Recipe::Rows(names) => names,
        }
    }
}

/// Translates a part's name for a tensor into a [`Recipe`] over a file's names.
pub type NameMap = fn(&str) -> Recipe;

/// The name most like `wanted`, unless none is much like it.
///
/// Few edits make a name alike, and so does a long common beginning: the parts of a module stand
/// nearer than the same part of another module.
#[must_use]
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    /// Below this likeness, of at most 2, a hint would mislead.
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
