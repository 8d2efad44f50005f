//! How each kind of edit is asked for: wordings to train on, and others that are held out.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

/// Wordings of one category; `{}` is what the edit aims at, `{1}` a second word where there is one.
#[derive(Debug, Deserialize)]
pub struct Wordings {
    pub train: Vec<String>,
    pub held_out: Vec<String>,
}

/// The wordings of every category.
pub fn all() -> anyhow::Result<BTreeMap<String, Wordings>> {
    toml::from_str(include_str!("wordings.toml")).context("wordings.toml is no table of wordings")
}

/// A wording with its gaps filled.
pub fn fill(wording: &str, words: &str, second: &str) -> String {
    let filled = wording.replace("{1}", second).replace("{}", words);
    let mut words: Vec<&str> = filled.split(' ').collect();
    for index in 1..words.len() {
        let vowel = words[index].starts_with(['a', 'e', 'i', 'o']) && words[index].len() > 1;
        if words[index - 1] == "a" && vowel {
            words[index - 1] = "an";
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_article_suits_its_word() {
        assert_eq!(fill("make {1} a {}", "office worker", "her"), "make her an office worker");
        assert_eq!(fill("draw {} in {1} style", "a cook", "3d"), "draw a cook in 3d style");
    }

    #[test]
    fn held_out_wordings_are_new_sentences_of_known_words() {
        let words = |text: &str| text.split([' ', ',']).map(str::to_owned).collect::<Vec<_>>();
        let all = all().unwrap();
        let known: BTreeSet<String> = all.values().flat_map(|w| &w.train).flat_map(|wording| words(wording)).collect();
        for (category, Wordings { train, held_out }) in &all {
            for wording in held_out {
                assert!(!train.contains(wording), "{category}: {wording}");
                let unknown: Vec<String> = words(wording).into_iter().filter(|w| !known.contains(w)).collect();
                // One synonym at most is new.
                assert!(unknown.len() <= 1, "{category}: {unknown:?}");
            }
        }
    }
}
