//! Texts of a prompt for which a vocabulary has no token.

use std::ops::Range;

use tokenizers::{Encoding, Model};

use super::boundary;

/// A noncharacter of Unicode, which is in no vocabulary.
const NOWHERE: &str = "\u{10FFFF}";

/// Returns the id that the model gives to a text outside its vocabulary; `None` if it spells such texts in
/// bytes, or drops them.
pub(super) fn unknown_id(model: &impl Model) -> Option<u32> {
    match model.tokenize(NOWHERE).ok()?.as_slice() {
        [token] => Some(token.id),
        _ => None,
    }
}

/// Returns the texts that became the token `unknown`, each once. Adjacent ones are joined, and parts of a
/// character completed. The token's own name, written out in the prompt, is none of them.
pub(super) fn unknown_texts(prompt: &str, tokens: &Encoding, unknown: u32, name: &str) -> Vec<String> {
    let text = |range: &Range<usize>| prompt.get(range.clone()).unwrap_or_default().trim();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (&id, &(start, end)) in tokens.get_ids().iter().zip(tokens.get_offsets()) {
        let range = boundary(prompt, (0..=start).rev())..boundary(prompt, end..=prompt.len());
        if id != unknown || text(&range) == name {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => ranges.push(range),
        }
    }
    let mut texts: Vec<String> = Vec::new();
    for text in ranges.iter().map(text).filter(|text| !text.is_empty()) {
        if !texts.iter().any(|known| known == text) {
            texts.push(text.to_owned());
        }
    }
    texts
}
