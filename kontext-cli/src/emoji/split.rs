//! The split into training and held-out edits, by combinations and by wordings.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;

use super::key::Key;
use super::pairs::Pair;
use super::wording::{self, Wordings, fill};

/// One in this many combinations is held out.
const ONE_IN: u32 = 8;
/// Limits of a category: lines in training, and held-out pairs.
const MOST: (usize, usize) = (12_000, 40);
/// Limits of `compound/…`: these are many, and most of the difference is the change of style.
const MOST_COMPOUND: (usize, usize) = (4_000, 10);

/// A line of the dataset.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// The edit.
    pub(super) pair: Pair,
    /// Its wording.
    pub(super) instruction: String,
    /// "train", "test" (new combination) or "wording" (the same in a new wording).
    pub(super) split: &'static str,
}

/// Words every pair and assigns it to a split.
pub(super) fn lines(pairs: Vec<Pair>) -> anyhow::Result<Vec<Line>> {
    let wordings = wording::all()?;
    let mut by_category = BTreeMap::<_, Vec<Pair>>::new();
    for pair in pairs {
        by_category.entry(pair.category).or_default().push(pair);
    }
    let edits = by_category.values().flatten().filter(|pair| !pair.shows_otherwise());
    let asked_for: BTreeSet<Key> = edits
        .filter(|pair| held_out(pair))
        .map(|pair| pair.target.clone())
        .collect();
    let mut lines = Vec::new();
    for (name, pairs) in by_category {
        let (test, mut train): (Vec<Pair>, Vec<Pair>) = pairs
            .into_iter()
            .partition(|pair| held_out(pair) && !(pair.shows_otherwise() && asked_for.contains(&pair.target)));
        train.retain(by_example(&test));
        let wordings = wordings.get(name).with_context(|| format!("no wordings of {name}"))?;
        lines.extend(category(name, test, train, wordings));
    }
    Ok(lines)
}

/// Returns `true` if the pair's combination is held out.
fn held_out(pair: &Pair) -> bool {
    hash(&["held out", pair.category, &pair.combination]).is_multiple_of(ONE_IN)
}

/// Returns a filter of the pairs that may be trained on, given the held-out ones. If a second image decides the edit of
/// the first, a first image with a held-out answer is excluded from training: its one remaining answer would be memorised
/// regardless of the second image.
fn by_example(test: &[Pair]) -> impl Fn(&Pair) -> bool {
    let decides = |pair: &Pair| (pair.sources.len() > 1).then(|| pair.sources[0].clone());
    let asked: BTreeSet<Key> = test.iter().filter_map(decides).collect();
    move |pair| decides(pair).is_none_or(|first| !asked.contains(&first))
}

/// Words the pairs of one category.
fn category(name: &str, test: Vec<Pair>, train: Vec<Pair>, wordings: &Wordings) -> Vec<Line> {
    let mut lines = Vec::new();
    let (most_lines, most_held_out) = if name.starts_with("compound/") {
        MOST_COMPOUND
    } else {
        MOST
    };
    let most = train.len().min(most_lines);
    // Small categories show every wording of a pair, large ones one or two.
    let each = (most_lines / most.max(1)).clamp(1, wordings.train.len());
    for pair in thinned(train, most) {
        let first = hash(&["wording", &pair.target.path(), &source(&pair)]) as usize;
        for offset in 0..each {
            let wording = &wordings.train[(first + offset) % wordings.train.len()];
            lines.push(Line {
                instruction: fill(wording, [&pair.words, &pair.second, &pair.style]),
                pair: pair.clone(),
                split: "train",
            });
        }
    }
    for (index, pair) in thinned(test, most_held_out).into_iter().enumerate() {
        let known = &wordings.train[index % wordings.train.len()];
        let new = &wordings.held_out[index % wordings.held_out.len()];
        let line = |wording: &str, split| Line {
            instruction: fill(wording, [&pair.words, &pair.second, &pair.style]),
            pair: pair.clone(),
            split,
        };
        lines.extend([line(known, "test"), line(new, "wording")]);
    }
    lines
}

/// Returns the first `most` pairs in an order by checksum.
fn thinned(mut pairs: Vec<Pair>, most: usize) -> Vec<Pair> {
    pairs.sort_by_cached_key(|pair| (hash(&["order", &pair.target.path(), &source(pair)]), source(pair)));
    pairs.truncate(most);
    pairs
}

fn source(pair: &Pair) -> String {
    pair.sources.iter().map(Key::path).collect::<Vec<_>>().join("+")
}

fn hash(parts: &[&str]) -> u32 {
    // Similar names have similar checksums: they are mixed once more.
    let sum = crc32fast::hash(parts.join("|").as_bytes());
    crc32fast::hash(&sum.wrapping_mul(0x9e37_79b9).to_le_bytes())
}

/// Finds a held-out target that training requests by the same instruction, or a held-out pair in training.
pub(super) fn leak(lines: &[Line]) -> Option<String> {
    let train = || lines.iter().filter(|line| line.split == "train");
    let asked: BTreeSet<_> = train()
        .map(|l| (l.pair.category, &l.pair.target, &l.pair.words))
        .collect();
    let pairs: BTreeSet<_> = train().map(|l| (&l.pair.sources, &l.pair.target)).collect();
    let held_out = lines.iter().filter(|line| line.split != "train");
    let leaks = |line: &&Line| {
        let Pair {
            category,
            target,
            words,
            sources,
            ..
        } = &line.pair;
        asked.contains(&(*category, target, words)) || (!sources.is_empty() && pairs.contains(&(sources, target)))
    };
    held_out
        .filter(leaks)
        .map(|line| format!("{} -> {}", line.instruction, line.pair.target.path()))
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emoji::key::Style;

    fn pair(source: usize, target: usize) -> Pair {
        let key = |n: usize| Key::new(Style::Flat, &format!("clock-{n}"), 0);
        Pair {
            category: "local/clock",
            sources: vec![key(source)],
            target: key(target),
            words: target.to_string(),
            second: String::new(),
            style: String::new(),
            combination: key(target).path(),
            candidates: vec![key(source), key(target)],
        }
    }

    #[test]
    fn a_held_out_target_is_never_trained() {
        let pairs = (0..40)
            .flat_map(|a| (0..40).filter(move |b| *b != a).map(move |b| pair(a, b)))
            .collect();
        let lines = lines(pairs).unwrap();
        let count = |split: &str| lines.iter().filter(|l| l.split == split).count();
        assert!(count("test") > 10 && count("test") == count("wording") && count("train") > 1000);
        assert_eq!(leak(&lines), None);
    }

    #[test]
    fn what_an_edit_holds_out_is_drawn_when_it_is_asked_for_in_another_way() {
        let edits: Vec<Pair> = (0..40).map(|target| pair(40 + target, target)).collect();
        let in_3d = |pair: &Pair| Pair {
            category: "compound/clock",
            sources: pair.sources.iter().map(|source| source.styled(Style::ThreeD)).collect(),
            style: "flat".to_owned(),
            ..pair.clone()
        };
        let compound: Vec<Pair> = edits.iter().map(in_3d).collect();
        let lines = lines(edits.into_iter().chain(compound).collect()).unwrap();
        let targets = |category: &str, split: &str| -> BTreeSet<Key> {
            let chosen = lines
                .iter()
                .filter(|line| line.pair.category == category && line.split == split);
            chosen.map(|line| line.pair.target.clone()).collect()
        };
        let held_out = targets("local/clock", "test");
        assert!(!held_out.is_empty() && held_out.is_disjoint(&targets("local/clock", "train")));
        assert!(held_out.is_subset(&targets("compound/clock", "train")));
        assert_eq!(leak(&lines), None);
    }

    #[test]
    fn a_leak_is_found() {
        let mut lines = lines(vec![pair(0, 1)]).unwrap();
        lines.extend(lines.clone().into_iter().map(|line| Line { split: "test", ..line }));
        assert!(leak(&lines).is_some());
    }
}
