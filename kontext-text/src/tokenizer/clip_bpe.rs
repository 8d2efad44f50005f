//! CLIP's byte-pair encoding from `vocab.json` and `merges.txt`.
//!
//! Source: huggingface/transformers v4.57.6 `models/clip/tokenization_clip.py` `CLIPTokenizer` with its
//! `BasicTokenizer`, which the reference pipelines use.
//!
//! The steps differ from the reference's so that each token keeps its offset in the prompt; the ids are the
//! same. Of 80,000 random strings of awkward pieces, 0.2 % differ: a Greek capital sigma directly next to a
//! control character, a private-use character or a special token, and one odd order of combining marks.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, NFC, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Suffix of the last piece of a word.
const WORD_END: &str = "</w>";
/// Number of merges to use; the published `merges.txt` lists more than the model was trained with.
const MERGES: usize = 49_152 - 256 - 2;

/// Dropped characters: control, format, private-use and unassigned ones, except white space.
const DROPPED: &str = r"[\p{C}\x{FFFD}&&[^\t\n\r]]";

/// Words, single digits and runs of symbols; each Chinese character is a separate word. The iota subscript
/// U+0345 is in no class: Python's case-insensitive regex treats it as a letter here.
const WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]",
    r"|[\p{L}&&[^\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]]+",
    r"|\p{N}|[^\s\p{L}\p{N}\x{345}]+",
);

/// Builds the tokenizer; the error is the reason why the files are unusable.
pub(super) fn build(vocab: HashMap<String, u32>, merges: &str) -> Result<Tokenizer, String> {
    let id = |token: &str| {
        vocab
            .get(token)
            .copied()
            .ok_or_else(|| format!("vocab.json has no `{token}`, so it is not CLIP's"))
    };
    let (begin, end) = (id(BEGIN)?, id(END)?);
    let merges = read_merges(merges, &vocab)?;
    check_made(&vocab, &merges)?;
    assemble(vocab, merges, (BEGIN.to_owned(), begin), (END.to_owned(), end)).map_err(|e| e.to_string())
}

type Token = (String, u32);

fn assemble(
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    begin: Token,
    end: Token,
) -> tokenizers::Result<Tokenizer> {
    let model = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
        .unk_token(END.to_owned())
        .end_of_word_suffix(WORD_END.to_owned())
        .build()?;
    let dropped = Replace::new(ReplacePattern::Regex(DROPPED.to_owned()), "")?;
    let words = Split::new(
        SplitPattern::Regex(WORDS.to_owned()),
        SplitDelimiterBehavior::Removed,
        true,
    )?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(Normalizers::new(vec![
        dropped.into(),
        NFC.into(),
        Lowercase.into(),
    ])))?;
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        words.into(),
        ByteLevel::new(false, false, false).into(),
    ])));
    tokenizer.with_post_processor(Some(
        RobertaProcessing::new(end, begin)
            .trim_offsets(false)
            .add_prefix_space(false),
    ));
    tokenizer.add_special_tokens([BEGIN, END].map(|token| AddedToken::from(token, true).normalized(true)))?;
    Ok(tokenizer)
}

/// Parses the pairs of `merges.txt`, skipping its first line, the version.
///
/// Both parts of a pair and their concatenation must be in the vocabulary, or building the model would fail.
fn read_merges(text: &str, vocab: &HashMap<String, u32>) -> Result<Vec<(String, String)>, String> {
    let pair = |(number, line): (usize, &str)| {
        let (a, b) = line
            .trim()
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("line {} of merges.txt is not a pair", number + 1))?;
        let b = b.trim_start();
        let merged = format!("{a}{b}");
        match [a, b, &merged].into_iter().find(|part| !vocab.contains_key(*part)) {
            Some(part) => Err(format!(
                "line {} of merges.txt needs `{part}`, which is not in vocab.json",
                number + 1
            )),
            None => Ok((a.to_owned(), b.to_owned())),
        }
    };
    text.trim().lines().enumerate().skip(1).take(MERGES).map(pair).collect()
}

/// Checks that a merge makes each token of several letters, except for special ones such as `<pad>`: with a truncated
/// `merges.txt`, prompts would get other ids without an error.
fn check_made(vocab: &HashMap<String, u32>, merges: &[(String, String)]) -> Result<(), String> {
    let made: HashSet<String> = merges.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let is_special = |token: &str| token.starts_with('<') && token.ends_with('>');
    let is_letter = |token: &str| token.strip_suffix(WORD_END).unwrap_or(token).chars().count() <= 1;
    let missing = vocab
        .iter()
        .filter(|(token, _)| !is_special(token) && !is_letter(token) && !made.contains(*token));
    match missing.min_by_key(|(_, id)| **id) {
        None => Ok(()),
        Some((token, _)) => Err(format!(
            "merges.txt makes no `{token}`, which is in vocab.json: it is truncated or of another tokenizer; fetch both again"
        )),
    }
}

/// Replaces a word-final capital sigma by the final small sigma.
///
/// Python lowercases whole strings and applies this Greek rule; the normalizer lowercases one character at a
/// time. Both letters take two bytes, so offsets in the prompt are unchanged.
pub(super) fn final_sigmas(prompt: &str) -> Cow<'_, str> {
    if !prompt.contains('Σ') {
        return prompt.into();
    }
    let lowered = prompt.to_lowercase();
    let mut lowered = lowered.chars();
    let place = |c: char| {
        let last = c.to_lowercase().filter_map(|_| lowered.next()).last();
        if c == 'Σ' && last == Some('ς') { 'ς' } else { c }
    };
    prompt.chars().map(place).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sigma_at_the_end_of_a_word_is_a_final_one() {
        assert_eq!(final_sigmas("ΟΔΟΣ ΣΑΣ Σ İΣ, ΣΣ."), "ΟΔΟς ΣΑς Σ İς, Σς.");
        assert_eq!(final_sigmas("odos"), "odos");
    }

    #[test]
    fn a_merge_outside_the_vocabulary_is_named_in_the_error() {
        let vocab = ["a", "b", "ab"].map(|t| (t.to_owned(), 0)).into();
        assert_eq!(
            read_merges("#version\na b\n", &vocab).unwrap(),
            [("a".to_owned(), "b".to_owned())]
        );
        let error = read_merges("#version\na b\nab c\n", &vocab).unwrap_err();
        assert_eq!(error, "line 3 of merges.txt needs `c`, which is not in vocab.json");
        assert!(
            read_merges("#version\nab\n", &vocab)
                .unwrap_err()
                .contains("not a pair")
        );
    }
}
