//! A dataset's folder: images, and `metadata.jsonl` with one training example a line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result};
use serde::Deserialize;

/// A training example: zero or more reference images, an instruction, and the target image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Reference images, relative to the dataset's folder; empty for text to image.
    pub sources: Vec<PathBuf>,
    /// Target image, relative to the dataset's folder.
    pub target: PathBuf,
    /// The prompt.
    pub instruction: String,
    /// Category of the edit, such as `local/hair`; can be empty.
    pub category: String,
    /// Split: `train`, `test`, or any other name. Default `train`.
    pub split: String,
}

/// A skipped line or file of the dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file, or the line of `metadata.jsonl`.
    pub what: String,
    /// The reason it was skipped.
    pub reason: String,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

/// The examples of a folder.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The folder.
    pub folder: PathBuf,
    /// Examples in file order.
    pub items: Vec<Item>,
    /// Unreadable lines, and images found unreadable while encoding.
    pub skipped: Vec<Skipped>,
}

/// A line of `metadata.jsonl`; unknown fields are ignored.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    source: Option<Sources>,
    target: PathBuf,
    #[serde(alias = "prompt", alias = "text")]
    instruction: String,
    #[serde(default)]
    category: String,
    #[serde(default = "train")]
    split: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Sources {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

fn train() -> String {
    "train".to_owned()
}

impl Dataset {
    /// Reads `folder/metadata.jsonl`: one JSON object a line, with the fields `target` and `instruction` and,
    /// optionally, `source` (a path or a list of paths), `category` and `split`.
    ///
    /// Invalid lines are skipped and listed in [`Dataset::skipped`].
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, a checkpoint error if no line is valid.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        let path = folder.join("metadata.jsonl");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let (mut items, mut skipped) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match serde_json::from_str::<Line>(line) {
                Ok(line) => items.push(Item::from(line)),
                Err(error) => {
                    skipped.push(Skipped {
                        what: format!("metadata.jsonl line {}", number + 1),
                        reason: error.to_string(),
                    });
                }
            }
        }
        if items.is_empty() {
            let reason = match skipped.first() {
                Some(first) => format!("no line can be used; {first}"),
                None => {
                    "it is empty; expected one JSON object a line with `source`, `target`, `instruction`".to_owned()
                }
            };
            return Err(Error::config(path, reason));
        }
        Ok(Self { folder, items, skipped })
    }

    /// Returns the paths of all images of the items, without duplicates, in order.
    #[must_use]
    pub fn images(&self) -> BTreeSet<PathBuf> {
        self.items
            .iter()
            .flat_map(|item| item.sources.iter().chain([&item.target]))
            .cloned()
            .collect()
    }

    /// Drops the items that use one of these images.
    pub fn without(&mut self, lost: &BTreeSet<PathBuf>) {
        self.items.retain(|item| {
            !item
                .sources
                .iter()
                .chain([&item.target])
                .any(|image| lost.contains(image))
        });
    }
}

impl From<Line> for Item {
    fn from(line: Line) -> Self {
        let sources = match line.source {
            None => Vec::new(),
            Some(Sources::One(source)) => vec![source],
            Some(Sources::Many(sources)) => sources,
        };
        Self {
            sources,
            target: line.target,
            instruction: line.instruction,
            category: line.category,
            split: line.split,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_one_source_or_several_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [
            r#"{"source": "a.png", "target": "b.png", "instruction": "one"}"#,
            r#"{"source": ["a.png", "c.png"], "target": "b.png", "instruction": "two", "split": "test"}"#,
            r#"{"target": "b.png", "instruction": "none", "category": "generate/name"}"#,
            r#"{"target": 3}"#,
        ];
        std::fs::write(folder.path().join("metadata.jsonl"), lines.join("\n")).unwrap();
        let dataset = Dataset::open(folder.path()).unwrap();
        let counts: Vec<usize> = dataset.items.iter().map(|i| i.sources.len()).collect();
        assert_eq!(counts, [1, 2, 0]);
        assert_eq!(
            (dataset.items[0].split.as_str(), dataset.items[1].split.as_str()),
            ("train", "test")
        );
        assert_eq!(dataset.skipped.len(), 1);
        assert!(
            dataset.skipped[0].to_string().starts_with("metadata.jsonl line 4: "),
            "{}",
            dataset.skipped[0]
        );
        assert_eq!(dataset.images().len(), 3);
    }
}
