//! Wordings of each kind of edit: some to train on, others held out.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

/// Wordings of one category; `{}` is the aim of the edit, `{1}` a second word if there is one, `{2}` an additional style.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wordings {
    /// For training, and for held-out combinations.
    pub(super) train: Vec<String>,
    /// New sentences of known words, for tests.
    pub(super) held_out: Vec<String>,
}

/// Returns the wordings of every category; those of `compound/…` combine a wording of the edit with a form of `compound`.
pub(super) fn all() -> anyhow::Result<BTreeMap<String, Wordings>> {
    let mut all: BTreeMap<String, Wordings> =
        toml::from_str(include_str!("wordings.toml")).context("wordings.toml is no table of wordings")?;
    let forms = all.remove("compound").context("wordings.toml has no [compound]")?;
    let combined = |(category, edit): (&String, &Wordings)| {
        let wordings = Wordings {
            train: crossed(&edit.train, &forms.train),
            held_out: crossed(&edit.held_out, &forms.held_out),
        };
        Some((format!("compound/{}", category.split_once('/')?.1), wordings))
    };
    let compound: Vec<_> = all.iter().filter_map(combined).collect();
    all.extend(compound);
    Ok(all)
}

/// Combines every wording with every form; neighbours differ in both.
fn crossed(wordings: &[String], forms: &[String]) -> Vec<String> {
    let pairs = (0..forms.len()).flat_map(|turn| wordings.iter().enumerate().map(move |(index, w)| (index + turn, w)));
    pairs
        .map(|(form, wording)| forms[form % forms.len()].replace("{}", wording))
        .collect()
}

/// Fills the gaps of a wording: the aim of the edit, a second word, a style.
pub(super) fn fill(wording: &str, [words, second, style]: [&str; 3]) -> String {
    let filled = wording
        .replace("{2}", style)
        .replace("{1}", second)
        .replace("{}", words);
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
        assert_eq!(
            fill("make {1} a {}", ["office worker", "her", ""]),
            "make her an office worker"
        );
        assert_eq!(
            fill("draw {} in {1} style", ["a cook", "3d", ""]),
            "draw a cook in 3d style"
        );
    }

    #[test]
    fn an_edit_and_a_style_are_asked_for_in_one_sentence() {
        let all = all().unwrap();
        let Wordings { train, held_out } = &all["compound/letter"];
        assert_eq!(
            fill(&train[0], ["cool", "", "flat"]),
            "change the text to cool in flat style"
        );
        assert!(
            train
                .iter()
                .chain(held_out)
                .all(|wording| wording.contains("{}") && wording.contains("{2}"))
        );
        assert!(held_out.iter().all(|wording| !train.contains(wording)));
        let Wordings { train, .. } = &all["compound/background"];
        assert_eq!(
            fill(&train[1], ["red", "", "3d"]),
            "change the background to red, 3d style"
        );
    }

    #[test]
    fn held_out_wordings_are_new_sentences_of_known_words() {
        let words = |text: &str| text.split([' ', ',']).map(str::to_owned).collect::<Vec<_>>();
        let all = all().unwrap();
        let known: BTreeSet<String> = all
            .values()
            .flat_map(|w| &w.train)
            .flat_map(|wording| words(wording))
            .collect();
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
