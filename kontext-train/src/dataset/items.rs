//! A dataset's folder: images, and `metadata.jsonl` with one training example a line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kontext_core::json_lines::{self, Fields, paths};
use kontext_core::{Error, Result};
use kontext_text::Tokenizer;

use super::missing::{EXAMPLE, missing};

/// Names of the file's field with the prompt.
const INSTRUCTION: [&str; 3] = ["instruction", "prompt", "text"];
/// Most reference images of an example.
const MOST_SOURCES: usize = 64;

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
    /// Name of the images among which the target might be mistaken for another, if the dataset lists them.
    pub family: Option<String>,
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

impl Dataset {
    /// Reads `folder/metadata.jsonl`, UTF-8 with or without a byte order mark: one JSON object a line, with
    /// the fields `target` and `instruction` (or `prompt`, or `text`) and, optionally, `source` (a path or a
    /// list of at most 64 paths), `category`, `split` and `family`; others are ignored. Paths are relative to
    /// the folder and stay in it.
    ///
    /// Invalid lines, also those with a prompt above [`Tokenizer::LONGEST_PROMPT`], are skipped and listed in
    /// [`Dataset::skipped`].
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; a checkpoint error if there is none, with the way from a
    /// folder of images with captions to one, if it is UTF-16, or if no line is valid.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        let path = folder.join("metadata.jsonl");
        if folder.is_dir() && !path.exists() {
            return Err(missing(&folder));
        }
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let lines = json_lines::read(&bytes).map_err(|reason| Error::config(&path, reason))?;
        let (mut items, mut skipped) = (Vec::new(), Vec::new());
        for (number, fields) in lines {
            match fields.and_then(|fields| Item::read(&fields)) {
                Ok(item) => items.push(item),
                Err(reason) => skipped.push(Skipped {
                    what: format!("metadata.jsonl line {number}"),
                    reason,
                }),
            }
        }
        if items.is_empty() {
            let reason = match skipped.first() {
                Some(first) => format!("no line can be used; {first}"),
                None => "it is empty".to_owned(),
            };
            let reason = format!("{reason}; expected an object on each line, such as {EXAMPLE}");
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

impl Item {
    /// Reads the fields of a line.
    fn read(fields: &Fields) -> std::result::Result<Self, String> {
        let listed = |name: &'static str| fields.get(&[name]).map(|(name, value)| paths(name, value)).transpose();
        let sources = listed("source")?.unwrap_or_default();
        if sources.len() > MOST_SOURCES {
            return Err(format!(
                "`source` names {} images, expected at most {MOST_SOURCES}",
                sources.len()
            ));
        }
        let (name, target) = fields.require(&["target"])?;
        let [target] = <[PathBuf; 1]>::try_from(paths(name, target)?)
            .map_err(|targets| format!("`target` names {} images, expected one", targets.len()))?;
        let text = |name| Ok::<_, String>(fields.text(&[name])?.map(str::to_owned));
        let (name, _) = fields.require(&INSTRUCTION)?;
        let instruction = fields.text(&INSTRUCTION)?.unwrap_or_default().to_owned();
        let (bytes, most) = (instruction.len(), Tokenizer::LONGEST_PROMPT);
        if bytes > most {
            return Err(format!(
                "`{name}` has {bytes} bytes, expected at most {most}; shorten it"
            ));
        }
        Ok(Self {
            sources,
            target,
            instruction,
            category: text("category")?.unwrap_or_default(),
            split: text("split")?.unwrap_or_else(|| "train".to_owned()),
            family: text("family")?,
        })
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

    /// Opens a dataset of these bytes; the error's reason.
    fn open(bytes: &[u8]) -> std::result::Result<Dataset, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("metadata.jsonl"), bytes).unwrap();
        Dataset::open(folder.path()).map_err(|error| std::error::Error::source(&error).unwrap().to_string())
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_utf_16_is_named() {
        let line = r#"{"target": "b.png", "instruction": "é"}"#;
        let dataset = open(format!("\u{feff}{line}\r\n{line}").as_bytes()).unwrap();
        assert_eq!((dataset.items.len(), dataset.skipped.len()), (2, 0));
        let wide = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        for bytes in [wide(&format!("\u{feff}{line}")), wide(line)] {
            assert!(
                open(&bytes)
                    .unwrap_err()
                    .ends_with("its text is UTF-16; save it as UTF-8")
            );
        }
        let latin: Vec<u8> = line.chars().map(|c| c as u8).collect();
        let both = [line.as_bytes(), b"\n", &latin, b"\n\0"].concat();
        let skipped: Vec<String> = open(&both).unwrap().skipped.iter().map(ToString::to_string).collect();
        assert_eq!(
            skipped,
            [
                "metadata.jsonl line 2: it is not UTF-8; save the file as UTF-8",
                "metadata.jsonl line 3: it is no JSON: expected value"
            ]
        );
    }

    #[test]
    fn other_names_of_fields_are_read_and_missing_ones_are_named() {
        let both = open(br#"{"target": {"path": "b.png"}, "prompt": "p", "text": "t", "split": null}"#).unwrap();
        let item = &both.items[0];
        assert_eq!((item.instruction.as_str(), item.split.as_str()), ("p", "train"));
        for (line, words) in [
            (
                r#"{"file_name": "b.png", "text": "t"}"#,
                "no field `target`; it has `file_name`, `text`",
            ),
            (
                r#"{"target": "b.png", "caption": "t"}"#,
                "no field `instruction` (nor `prompt`); it has",
            ),
            (r#"{"target": "b.png", "instruction": 3}"#, "`instruction` is no text"),
            (
                r#"{"target": ["a.png", "b.png"], "instruction": ""}"#,
                "`target` names 2 images, expected one",
            ),
            (r#"{"target": 3, "instruction": ""}"#, "`target` is no path of an image"),
            (
                r#"{"target": "b.png", "instruction": "", "split": 1}"#,
                "`split` is no text",
            ),
            ("[{", "got a list; put each object on a line of its own"),
            ("", "it is empty; expected an object on each line"),
        ] {
            let error = open(line.as_bytes()).unwrap_err();
            assert!(error.contains(words) && error.ends_with(EXAMPLE), "{line}: {error}");
        }
        let nowhere = Dataset::open("no/such/folder").unwrap_err().to_string();
        assert!(nowhere.contains("metadata.jsonl"), "{nowhere}");
        let many = serde_json::json!({"source": vec!["a.png"; 65], "target": "b.png", "instruction": ""});
        assert!(
            open(many.to_string().as_bytes())
                .unwrap_err()
                .contains("65 images, expected at most 64")
        );
    }

    #[test]
    fn a_prompt_too_long_for_an_encoder_is_skipped_with_the_number_of_its_line() {
        let line = |length| serde_json::json!({"target": "b.png", "prompt": "a".repeat(length)}).to_string();
        let lines = [
            line(1),
            line(Tokenizer::LONGEST_PROMPT + 1),
            line(Tokenizer::LONGEST_PROMPT),
        ];
        let dataset = open(lines.join("\n").as_bytes()).unwrap();
        assert_eq!(dataset.items.len(), 2);
        let skipped: Vec<String> = dataset.skipped.iter().map(ToString::to_string).collect();
        assert_eq!(
            skipped,
            ["metadata.jsonl line 2: `prompt` has 262145 bytes, expected at most 262144; shorten it"]
        );
    }

    #[test]
    fn a_path_that_leaves_the_folder_is_refused() {
        for field in ["source", "target"] {
            for path in ["../x.png", "/x.png", "a/../../x.png", ".."] {
                let mut line = serde_json::json!({"source": "a.png", "target": "b.png", "instruction": ""});
                line[field] = path.into();
                let error = open(line.to_string().as_bytes()).unwrap_err();
                let words = format!("line 1: the path {path:?} does not stay in the folder");
                assert!(error.contains(&words), "{error}");
            }
        }
    }
}
