//! Tokenizers of a small model: every word of its instructions is one token.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use kontext_core::{Error, Result, create_folder, write_json};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::tokenizer::{AddedToken, Trainer};

/// Printable ASCII: the fallback that spells words absent from the training texts.
const ALPHABET: std::ops::RangeInclusive<u8> = b'!'..=b'~';
/// End of the last token of a word.
const WORD_END: &str = "</w>";
/// Upper limit of the vocabulary; more than the merges needed for the words.
const MOST_TOKENS: usize = 40_000;

/// Writes tokenizers for these texts into `folder/tokenizer` (CLIP's format) and `folder/tokenizer_2` (T5's
/// format), as transformers reads them.
///
/// `clip_tokens` and `t5_tokens` are the sequence lengths in the configurations. Returns the vocabulary size
/// of each; CLIP's last token ends a text.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written.
pub fn write_tokenizers<'a>(
    folder: &Path,
    texts: impl Iterator<Item = &'a str>,
    clip_tokens: usize,
    t5_tokens: usize,
) -> Result<(i64, i64)> {
    let words: BTreeSet<String> = texts.flat_map(words).collect();
    let clip = write_clip(&folder.join("tokenizer"), &words, clip_tokens)?;
    Ok((clip, write_t5(&folder.join("tokenizer_2"), &words, t5_tokens)?))
}

/// Splits a text into lower-case words as both tokenizers do: each sign and digit is a word.
fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let mut words = vec![String::new()];
    for c in text.chars() {
        let alone = !c.is_alphabetic();
        if alone {
            words.push(if c.is_whitespace() {
                String::new()
            } else {
                c.to_string()
            });
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Writes a byte-pair encoding with merges until every word is one token.
fn write_clip(folder: &Path, words: &BTreeSet<String>, length: usize) -> Result<i64> {
    let failed = |e: &dyn std::fmt::Display| Error::Tokenizer {
        path: folder.to_owned(),
        reason: e.to_string(),
    };
    let letters = ALPHABET.map(|byte| char::from(byte).to_ascii_lowercase().to_string());
    let all: Vec<String> = words.iter().cloned().chain(letters).collect();
    // The trainer numbers them in the random order of a hash map, unless they are given.
    let ends: BTreeSet<String> = all
        .iter()
        .filter_map(|word| Some(format!("{}{WORD_END}", word.chars().last()?)))
        .collect();
    let ends = ends.into_iter().map(|end| AddedToken::from(end, false)).collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(MOST_TOKENS)
        .min_frequency(0)
        .show_progress(false)
        .initial_alphabet(ALPHABET.map(char::from).collect())
        .special_tokens(ends)
        .end_of_word_suffix(WORD_END.to_owned())
        .build();
    trainer
        .feed(all.iter(), |word| Ok(vec![word.to_owned()]))
        .map_err(|e| failed(&e))?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(|e| failed(&e))?;
    create_folder(folder)?;
    tokenizers::Model::save(&model, folder, None).map_err(|e| failed(&e))?;
    let mut vocab: HashMap<String, u32> = model.get_vocab().into_iter().collect();
    let count = vocab.len() as u32;
    vocab.insert("<|startoftext|>".to_owned(), count);
    vocab.insert("<|endoftext|>".to_owned(), count + 1);
    write_json(folder.join("vocab.json"), &json!(vocab))?;
    write_json(
        folder.join("tokenizer_config.json"),
        &json!({
            "tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "model_max_length": length,
        }),
    )?;
    Ok(i64::from(count) + 2)
}

/// Writes a unigram model of whole words, each with a leading space, and letters.
fn write_t5(folder: &Path, words: &BTreeSet<String>, length: usize) -> Result<i64> {
    let special = ["<pad>", "</s>", "<unk>"];
    let mut vocab: Vec<(String, f64)> = special.iter().map(|s| ((*s).to_owned(), 0.0)).collect();
    vocab.push(("▁".to_owned(), -20.0));
    // A word scores above its letters, and letters with a leading space above those without.
    vocab.extend(
        words
            .iter()
            .filter(|word| word.chars().count() > 1)
            .map(|word| (format!("▁{word}"), -5.0)),
    );
    for byte in ALPHABET {
        vocab.push((format!("▁{}", char::from(byte)), -10.0));
        vocab.push((char::from(byte).to_string(), -10.0));
    }
    let count = vocab.len() as i64;
    let added = (0..).zip(special).map(|(id, content): (i64, _)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    });
    let end = json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let space = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": space,
        "post_processor": {
            "type": "TemplateProcessing", "single": [text("A"), end], "pair": [text("A"), end, text("B"), end],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } },
        },
        "decoder": space,
        "model": { "type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false },
    });
    create_folder(folder)?;
    write_json(folder.join("tokenizer.json"), &tokenizer)?;
    write_json(
        folder.join("tokenizer_config.json"),
        &json!({
            "model_max_length": length, "tokenizer_class": "T5TokenizerFast", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
            "extra_ids": 0, "additional_special_tokens": [],
        }),
    )?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use kontext_text::Tokenizer;

    use super::*;

    #[test]
    fn the_same_texts_give_the_same_files() {
        let folder = tempfile::tempdir().unwrap();
        let texts = ["make it green", "paint the book in bright blue", "ein grünes Haus"];
        let files = || {
            write_tokenizers(folder.path(), texts.into_iter(), 24, 16).unwrap();
            [
                "tokenizer/vocab.json",
                "tokenizer/merges.txt",
                "tokenizer_2/tokenizer.json",
            ]
            .map(|name| std::fs::read_to_string(folder.path().join(name)).unwrap())
        };
        let first = files();
        for _ in 0..5 {
            assert!(files() == first);
        }
    }

    #[test]
    fn known_words_are_one_token_each_and_others_are_spelt() {
        let folder = tempfile::tempdir().unwrap();
        let texts = [
            "make it green",
            "a clock at three oclock, flat style",
            "turn it by 90 degrees",
        ];
        let (clip, t5) = write_tokenizers(folder.path(), texts.into_iter(), 24, 16).unwrap();
        let open = |name: &str| Tokenizer::open(folder.path().join(name)).unwrap();
        let (clip_tokenizer, t5_tokenizer) = (open("tokenizer"), open("tokenizer_2"));
        assert_eq!(
            (clip_tokenizer.vocab_size() as i64, t5_tokenizer.vocab_size() as i64),
            (clip, t5)
        );
        let used = |tokenizer: &Tokenizer, text: &str| tokenizer.encode(text, 40).unwrap().used;
        // Words, and the special tokens of every text: T5's end, CLIP's start and end.
        assert_eq!(used(&t5_tokenizer, "Make the clock green"), 1 + 3 + "the".len());
        assert_eq!(used(&clip_tokenizer, "Make it green"), 2 + 3);
        assert_eq!(used(&t5_tokenizer, "make it green"), 1 + 3);
        let unknown = t5_tokenizer.encode("zebra", 10).unwrap();
        assert!(!unknown.ids[..unknown.used].contains(&2), "{:?}", unknown.ids);
    }
}
