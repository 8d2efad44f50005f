//! Letter-by-letter tokenizers, for models with random weights.

use std::collections::BTreeMap;
use std::path::Path;

use kontext_core::{Result, write_file, write_json};
use serde_json::{Value, json};

use super::save_part::make_folder;

/// Printable ASCII: the alphabet of the tokenizers.
const ALPHABET: std::ops::RangeInclusive<u8> = b' '..=b'~';

/// Writes both tokenizers in the layout of a diffusers checkpoint, into `tokenizer` and `tokenizer_2`.
pub(crate) fn write(folder: &Path) -> Result<()> {
    write_clip(&make_folder(&folder.join("tokenizer"))?)?;
    write_json(make_folder(&folder.join("tokenizer_2"))?.join("tokenizer.json"), &t5())
}

/// Returns CLIP's vocabulary size; the last token ends a text.
pub(crate) fn clip_vocab() -> i64 {
    let [_, _, special] = clip_ids();
    special + 2
}

/// Returns the ids of the first letter, of the first letter at the end of a word, and of the first special
/// token.
fn clip_ids() -> [i64; 3] {
    let letters = i64::try_from(ALPHABET.count()).unwrap_or_default();
    [0, letters, 2 * letters]
}

/// Writes a byte-pair tokenizer without merges: every letter is a token.
fn write_clip(folder: &Path) -> Result<()> {
    let [first, last, special] = clip_ids();
    let mut vocab = BTreeMap::new();
    for (offset, byte) in (0_i64..).zip(ALPHABET) {
        // Byte-level BPE writes the space as another letter.
        let letter = if byte == b' ' { 'Ġ' } else { char::from(byte) };
        vocab.insert(letter.to_string(), first + offset);
        vocab.insert(format!("{letter}</w>"), last + offset);
    }
    vocab.insert("<|startoftext|>".to_owned(), special);
    vocab.insert("<|endoftext|>".to_owned(), special + 1);
    write_json(folder.join("vocab.json"), &json!(vocab))?;
    write_file(folder.join("merges.txt"), b"#version: 0.2\n")
}

/// Returns a unigram tokenizer over letters, with T5's special tokens.
fn t5() -> Value {
    let special = ["<pad>", "</s>", "<unk>"];
    let mut vocab: Vec<(String, f64)> = special.iter().map(|s| ((*s).to_owned(), 0.0)).collect();
    vocab.push(("▁".to_owned(), -2.0));
    vocab.extend(ALPHABET.skip(1).map(|byte| (char::from(byte).to_string(), -3.0)));
    let added = (0..).zip(special).map(|(id, content): (i64, _)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
    });
    let end = json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "post_processor": {
            "type": "TemplateProcessing", "single": [text("A"), end], "pair": [text("A"), end, text("B"), end],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } },
        },
        "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "model": { "type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false },
    })
}
