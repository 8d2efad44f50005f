//! Series of edits with known results: walks through the images of a dataset, from edit to edit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::judge::{Edit, edits};

/// An image and the edits made to it, turn by turn.
#[derive(Debug, Clone)]
pub struct Walk {
    /// Category of its first edit, which is a held-out one.
    pub category: String,
    /// The first image.
    pub start: PathBuf,
    /// Its edits, in order.
    pub turns: Vec<Turn>,
}

/// An instruction and its true result.
#[derive(Debug, Clone)]
pub struct Turn {
    /// The prompt.
    pub instruction: String,
    /// The image that it should give.
    pub truth: PathBuf,
}

/// Edits of one reference image each, by that image.
#[derive(Debug)]
pub struct Edits {
    by_source: BTreeMap<PathBuf, Vec<Edit>>,
    held_out: Vec<Edit>,
}

/// Categories of edits that can be undone by another edit.
const THERE_AND_BACK: [&str; 5] = [
    "global/style",
    "global/background",
    "global/mirror",
    "global/rotate",
    "global/invert",
];
/// Categories of local edits, in groups from which a walk takes its next edit.
const ELSEWHERE: [&[&str]; 4] = [
    &["local/skin-tone", "local/hair", "local/gender"],
    &["global/background"],
    &["local/clock"],
    &["text/keycap"],
];

impl Edits {
    /// Reads the dataset in a folder.
    ///
    /// # Errors
    /// If a file of the dataset cannot be read.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let mut all = edits(folder, &["train", "test"])?;
        all.retain(|edit| edit.source.len() == 1);
        let held_out = all.iter().filter(|edit| edit.split == "test").cloned().collect();
        let mut by_source = BTreeMap::<PathBuf, Vec<Edit>>::new();
        for edit in all {
            by_source.entry(edit.source[0].clone()).or_default().push(edit);
        }
        Ok(Self { by_source, held_out })
    }

    /// Iterates over the held-out edits of a category.
    pub fn held_out(&self, category: &str) -> impl Iterator<Item = &Edit> {
        self.held_out.iter().filter(move |edit| edit.category == category)
    }

    /// Returns walks that change an image and change it back, `each` of every kind.
    #[must_use]
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

    /// Returns walks of different edits in sequence, `each` of every group.
    #[must_use]
    pub fn elsewhere(&self, turns: usize, each: usize) -> Vec<Walk> {
        let mut walks = Vec::new();
        for group in ELSEWHERE {
            // The categories of a group alternate.
            let mut firsts: Vec<_> = group.iter().map(|category| self.held_out(category)).collect();
            let rounds = std::iter::from_fn(|| {
                let next: Vec<Option<&Edit>> = firsts.iter_mut().map(Iterator::next).collect();
                next.iter().any(Option::is_some).then_some(next)
            });
            let group_walks = rounds
                .flatten()
                .flatten()
                .filter_map(|first| self.walk_from(first, group, turns));
            walks.extend(group_walks.take(each));
        }
        walks
    }

    /// Returns a walk that begins with this edit; `None` if no edit continues it.
    fn walk_from(&self, first: &Edit, group: &[&str], turns: usize) -> Option<Walk> {
        let start = first.source[0].clone();
        let mut taken = vec![first];
        while taken.len() < turns {
            let last = taken.last()?;
            // An edit straight back is excluded.
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

    /// Returns the instruction that undoes an edit; `None` if none does.
    fn back(&self, edit: &Edit) -> Option<String> {
        match edit.category.as_str() {
            // No edit of the dataset begins with a mirrored image, but the same instruction undoes it.
            "global/mirror" | "global/invert" => Some(edit.instruction.clone()),
            "global/rotate" => {
                let degrees = ["90", "180", "270"]
                    .into_iter()
                    .find(|degrees| edit.instruction.contains(degrees))?;
                let back = 360 - degrees.parse::<u32>().ok()?;
                Some(edit.instruction.replace(degrees, &back.to_string()))
            }
            // Black and white has lost the colours.
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
