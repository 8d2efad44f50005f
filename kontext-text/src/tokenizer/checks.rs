//! Checks of a `tokenizer.json` for parts on which the tokenizers crate aborts the process or takes memory out of
//! proportion. Its panics need none: they are contained.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

use super::files::REMEDY;

/// Accepts all that the version of the base64 crate that the tokenizers crate uses does, and more: padding is optional.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Checks that the result of every merge is in the vocabulary: the tokenizers crate aborts the process on a
/// merge whose result is longer than any token. Merges are "a b" or ["a", "b"].
pub(super) fn merges(json: &Value) -> Result<(), String> {
    let model = &json["model"];
    let (Some(merges), Some(vocab)) = (model["merges"].as_array(), model["vocab"].as_object()) else {
        return Ok(());
    };
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    for merge in merges {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            other => other[0].as_str().zip(other[1].as_str()),
        };
        let known = |(a, b): (&str, &str)| {
            b.strip_prefix(prefix)
                .is_some_and(|b| vocab.contains_key(&format!("{a}{b}")))
        };
        if !pair.is_some_and(known) {
            return Err(format!("its merge {merge} gives no token of its vocabulary; {REMEDY}"));
        }
    }
    Ok(())
}

/// Checks that every character map of a `Precompiled` normalizer is as long as it says: the crate that reads it
/// allocates up to 8 GiB for the trie's size in its first four bytes. One that is no base64 is refused here, so that no
/// map comes to that crate unchecked.
pub(super) fn charsmaps(json: &Value) -> Result<(), String> {
    texts(json, "precompiled_charsmap").into_iter().try_for_each(charsmap)
}

fn charsmap(map: &str) -> Result<(), String> {
    let bytes = LENIENT
        .decode(map)
        .map_err(|error| format!("its precompiled_charsmap is no base64 ({error}); {REMEDY}"))?;
    let Some((size, rest)) = bytes.split_first_chunk() else {
        return Ok(());
    };
    let size = u32::from_le_bytes(*size);
    if usize::try_from(size).is_ok_and(|size| size <= rest.len()) {
        return Ok(());
    }
    let held = rest.len();
    Err(format!(
        "its precompiled_charsmap has a trie of {size} bytes, but holds {held}; {REMEDY}"
    ))
}

/// Most regular expressions of a tokenizer. Published ones have up to three; each may take 10 MB, the limit of the
/// regex crate.
const MOST_PATTERNS: usize = 16;

/// Checks that there are at most [`MOST_PATTERNS`] regular expressions.
pub(super) fn patterns(json: &Value) -> Result<(), String> {
    let found = texts(json, "Regex").len();
    if found <= MOST_PATTERNS {
        return Ok(());
    }
    Err(format!(
        "it has {found} regular expressions, of which at most {MOST_PATTERNS} are read; {REMEDY}"
    ))
}

/// Returns the texts of all fields of this name, at any depth.
fn texts<'a>(json: &'a Value, name: &str) -> Vec<&'a str> {
    match json {
        Value::Array(values) => values.iter().flat_map(|value| texts(value, name)).collect(),
        Value::Object(fields) => {
            let own = fields.get(name).and_then(Value::as_str);
            own.into_iter()
                .chain(fields.values().flat_map(|value| texts(value, name)))
                .collect()
        }
        _ => Vec::new(),
    }
}
