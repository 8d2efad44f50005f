//! Series of edits whose every result is known: walks through the pictures of a dataset, from edit to edit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::judge::{Edit, edits};

/// A picture, and what is done to it turn by turn.
#[derive(Debug, Clone)]
pub struct Walk {
    /// The category of its first edit, which is a held-out one.
    pub category: String,
    pub start: PathBuf,
    pub turns: Vec<Turn>,
}

/// An instruction, and the picture that it should give.
#[derive(Debug, Clone)]
pub struct Turn {
    pub instruction: String,
    pub truth: PathBuf,
}

/// Edits of a dataset by the picture that they begin with; of one picture each.
pub struct Edits {
    by_source: BTreeMap<PathBuf, Vec<Edit>>,
    held_out: Vec<Edit>,
}

/// Changes that lead back, each with categories that begin a walk.
const THERE_AND_BACK: [&str; 5] = [
    "global/style",
    "global/background",
    "global/mirror",
    "global/rotate",
    "global/invert",
];
/// Changes of a part, in groups among which a walk goes on.
const ELSEWHERE: [&[&str]; 4] = [
    &["local/skin-tone", "local/hair", "local/gender"],
    &["global/background"],
    &["local/clock"],
    &["text/keycap"],
];

impl Edits {
    pub fn of(folder: &Path) -> anyhow::Result<Self> {
        let mut all = edits(folder, &["train", "test"])?;
        all.retain(|edit| edit.source.len() == 1);
        let held_out = all.iter().filter(|edit| edit.split == "test").cloned().collect();
        let mut by_source = BTreeMap::<PathBuf, Vec<Edit>>::new();
        for edit in all {
            by_source.entry(edit.source[0].clone()).or_default().push(edit);
        }
        Ok(Self { by_source, held_out })
    }

    /// Held-out edits of a category.
    pub fn held_out(&self, category: &str) -> impl Iterator<Item = &Edit> {
        self.held_out.iter().filter(move |edit| edit.category == category)
    }

    /// Walks that change a picture and change it back, `each` of every kind.
    pub fn there_and_back(&self, turns: usize, each: usize) -> Vec<Walk> {
        let walk = |edit: &Edit| {
            let there = Turn {
                instruction: edit.instruction.clone(),
                truth: edit.target.clone(),
            };
            let back = Turn {
                instruction: self.back(edit)?,
                truth: edit.source[0].clone(),
            };
            let turns = [there, back].into_iter().cycle().take(turns).collect();
            Some(Walk {
                category: edit.category.clone(),
                start: edit.source[0].clone(),
                turns,
            })
        };
        THERE_AND_BACK
            .iter()
            .flat_map(|category| self.held_out(category).filter_map(walk).take(each))
            .collect()
    }

    /// Walks that change one thing after the other, `each` of every group.
    pub fn elsewhere(&self, turns: usize, each: usize) -> Vec<Walk> {
        let mut walks = Vec::new();
        for group in ELSEWHERE {
            // The categories of a group take turns.
            let mut firsts: Vec<_> = group.iter().map(|category| self.held_out(category)).collect();
            let of_group = std::iter::from_fn(|| {
                let next: Vec<Option<&Edit>> = firsts.iter_mut().map(Iterator::next).collect();
                next.iter().any(Option::is_some).then_some(next)
            });
            let of_group = of_group
                .flatten()
                .flatten()
                .filter_map(|first| self.on(first, group, turns));
            walks.extend(of_group.take(each));
        }
        walks
    }

    /// A walk that begins with this edit; none where it comes to an end before.
    fn on(&self, first: &Edit, group: &[&str], turns: usize) -> Option<Walk> {
        let start = first.source[0].clone();
        let mut taken = vec![first];
        while taken.len() < turns {
            let last = taken.last()?;
            // Not straight back.
            let next = |edit: &&Edit| group.contains(&edit.category.as_str()) && edit.target != last.source[0];
            let nexts: Vec<&Edit> = self.by_source.get(&last.target)?.iter().filter(next).collect();
            let text = format!("{}|{}|{}", start.display(), first.target.display(), taken.len());
            taken.push(nexts.get(crc32fast::hash(text.as_bytes()) as usize % nexts.len().max(1))?);
        }
        let turn = |edit: &&Edit| Turn {
            instruction: edit.instruction.clone(),
            truth: edit.target.clone(),
        };
        Some(Walk {
            category: first.category.clone(),
            start,
            turns: taken.iter().map(turn).collect(),
        })
    }

    /// What undoes an edit; none where it cannot be undone.
    fn back(&self, edit: &Edit) -> Option<String> {
        match edit.category.as_str() {
            // No picture of the dataset begins mirrored, and yet the way back is the same.
            "global/mirror" | "global/invert" => Some(edit.instruction.clone()),
            "global/rotate" => {
                let degrees = ["90", "180", "270"]
                    .into_iter()
                    .find(|degrees| edit.instruction.contains(degrees))?;
                let back = 360 - degrees.parse::<u32>().ok()?;
                Some(edit.instruction.replace(degrees, &back.to_string()))
            }
            // Black and white does not tell which colours there were.
            _ if edit.target.starts_with("pictures/contrast") || edit.source[0].starts_with("pictures/contrast") => {
                None
            }
            _ => {
                let back = self
                    .by_source
                    .get(&edit.target)?
                    .iter()
                    .find(|back| back.target == edit.source[0])?;
                Some(back.instruction.clone())
            }
        }
    }
}
