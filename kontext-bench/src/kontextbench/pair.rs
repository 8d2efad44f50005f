//! One pair of a bench: images and an instruction.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Length limit of keys in bytes; longer ones exceed the file name limits of file systems.
const LONGEST_KEY: usize = 80;

/// One or more images and an instruction. Paths are relative to the folder of `metadata.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Name, unique in the bench: `0000_00`.
    pub key: String,
    /// The edit to make.
    pub instruction: String,
    /// One of [`CATEGORIES`](super::CATEGORIES), or the bench's own category.
    pub category: String,
    /// The image to edit, then further references.
    pub images: Vec<PathBuf>,
    /// The true result, if known.
    pub truth: Option<PathBuf>,
    /// Images that the result might be mistaken for, if the truth is known.
    pub candidates: Vec<PathBuf>,
    /// Line in `metadata.jsonl`, from 1.
    pub line: usize,
}

impl Pair {
    /// Reads a line of `metadata.jsonl`. The category is kept unchanged.
    pub(super) fn read(text: &str, line: usize) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            // serde_json's line number refers to this line only.
            let words = error.to_string();
            format!("it is no JSON: {}", words.split(" at line ").next().unwrap_or(&words))
        })?;
        let Value::Object(fields) = value else {
            return Err("expected a JSON object".to_owned());
        };
        let (name, images) = field(&fields, &["file_name", "image", "images", "image_path"])
            .ok_or_else(|| format!("no field `file_name` (nor `image`); it has {}", names(&fields)))?;
        let mut images = paths(name, images)?;
        if images.is_empty() {
            return Err(format!("`{name}` names no image"));
        }
        if let Some((name, more)) = field(&fields, &["references"]) {
            images.extend(paths(name, more)?);
        }
        let (name, instruction) = field(&fields, &["instruction", "prompt", "text"])
            .ok_or_else(|| format!("no field `instruction` (nor `prompt`); it has {}", names(&fields)))?;
        let instruction = instruction.as_str().map(str::trim).filter(|text| !text.is_empty());
        let instruction = instruction.ok_or_else(|| format!("`{name}` is no text"))?.to_owned();
        let category = field(&fields, &["category"])
            .and_then(|(_, value)| value.as_str())
            .unwrap_or_default();
        let truth = field(&fields, &["truth"])
            .map(|(name, value)| paths(name, value))
            .transpose()?;
        let candidates = field(&fields, &["candidates"])
            .map(|(name, value)| paths(name, value))
            .transpose()?;
        Ok(Self {
            key: key(&fields, line)?,
            instruction,
            category: category.trim().to_owned(),
            images,
            truth: truth.and_then(|paths| paths.into_iter().next()),
            candidates: candidates.unwrap_or_default(),
            line,
        })
    }

    /// Returns all images of the pair.
    pub(super) fn all_images(&self) -> impl Iterator<Item = &PathBuf> {
        self.images.iter().chain(&self.truth).chain(&self.candidates)
    }

    /// Returns the key as a file name: letters, digits, `_` and `-` are kept, all else is percent-encoded by
    /// byte.
    #[must_use]
    pub fn file_stem(&self) -> String {
        let mut name = String::new();
        for byte in self.key.bytes() {
            if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
                name.push(char::from(byte));
            } else {
                name.push_str(&format!("%{byte:02X}"));
            }
        }
        name
    }

    /// Returns the seed of its noise, derived only from the run's seed and the key: 32 bits, because
    /// `torch.Generator` takes no more.
    ///
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let test = folder.path().join("test");
    /// # std::fs::create_dir(&test).unwrap();
    /// # image::RgbImage::new(4, 4).save(test.join("cup.png")).unwrap();
    /// # let line = r#"{"file_name": "cup.png", "instruction": "make it red", "key": "0000_00"}"#;
    /// # std::fs::write(test.join("metadata.jsonl"), line).unwrap();
    /// let bench = kontext_bench::kontextbench::Bench::open(folder.path())?;
    /// assert_eq!(bench.pairs[0].seed(7), 1_364_829_562);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    #[must_use]
    pub fn seed(&self, run: u64) -> u64 {
        u64::from(draw(run, &self.key))
    }
}

/// Hashes a number and a name to 32 bits.
pub(super) fn draw(seed: u64, name: &str) -> u32 {
    let digest = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(name)
        .finalize();
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Returns the first of these fields that exists and is not null.
fn field<'a>(fields: &'a Map<String, Value>, names: &[&'static str]) -> Option<(&'static str, &'a Value)> {
    names.iter().find_map(|name| {
        fields
            .get(*name)
            .filter(|value| !value.is_null())
            .map(|value| (*name, value))
    })
}

fn names(fields: &Map<String, Value>) -> String {
    const SHOWN: usize = 8;
    let names: Vec<String> = fields.keys().take(SHOWN).map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// Returns `key` or `id`; without them the published form of `image_idx` and `prompt_idx`, or the line
/// number.
fn key(fields: &Map<String, Value>, line: usize) -> Result<String, String> {
    let number = |name: &str| fields.get(name).and_then(Value::as_u64);
    let key = match field(fields, &["key", "id"]) {
        Some((_, Value::String(key))) => key.clone(),
        Some((_, Value::Number(number))) => number.to_string(),
        Some((name, _)) => return Err(format!("`{name}` is neither a text nor a number")),
        None => match (number("image_idx"), number("prompt_idx")) {
            (Some(image), Some(prompt)) => format!("{image:04}_{prompt:02}"),
            _ => format!("line_{line:05}"),
        },
    };
    if key.is_empty() || key.len() > LONGEST_KEY {
        return Err(format!("the key has {} bytes, expected 1 to {LONGEST_KEY}", key.len()));
    }
    Ok(key)
}

/// Reads a path, a list of them, or objects with a `path`, as the `datasets` library writes images.
fn paths(name: &str, value: &Value) -> Result<Vec<PathBuf>, String> {
    let one = |value: &Value| {
        let text = value.get("path").unwrap_or(value).as_str();
        inside(text.ok_or_else(|| format!("`{name}` is no path of an image"))?)
    };
    match value {
        Value::Array(values) => values.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// Checks that a path stays in the bench's folder: a bench is untrusted input.
fn inside(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let stays = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if text.is_empty() || !stays {
        return Err(format!("the path {text:?} does not stay in the bench's folder"));
    }
    Ok(path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Pair, String> {
        Pair::read(text, 12)
    }

    #[test]
    fn a_line_as_published_is_read() {
        let line = r#"{"file_name": "images/0003.jpg", "instruction": "make it winter", "category": "Text Editing",
            "key": "0003_01", "image_idx": 3, "prompt_idx": 1}"#;
        let pair = read(line).unwrap();
        assert_eq!(
            (pair.key.as_str(), pair.instruction.as_str()),
            ("0003_01", "make it winter")
        );
        assert_eq!((pair.category.as_str(), pair.line), ("Text Editing", 12));
        assert_eq!(pair.images, [Path::new("images/0003.jpg")]);
        assert_eq!((pair.truth, pair.candidates.len()), (None, 0));
    }

    #[test]
    fn other_names_of_fields_are_read() {
        let pair = read(r#"{"image": {"path": "a.png"}, "prompt": " p ", "id": 7, "references": ["b.png"]}"#).unwrap();
        assert_eq!((pair.key.as_str(), pair.instruction.as_str()), ("7", "p"));
        assert_eq!(pair.images, [Path::new("a.png"), Path::new("b.png")]);
        let key = |line| read(line).unwrap().key;
        assert_eq!(
            key(r#"{"image": "a.png", "prompt": "p", "image_idx": 3, "prompt_idx": 1}"#),
            "0003_01"
        );
        assert_eq!(key(r#"{"image": "a.png", "prompt": "p"}"#), "line_00012");
    }

    #[test]
    fn what_a_line_lacks_is_said() {
        for (line, words) in [
            ("{", "it is no JSON: EOF while parsing an object"),
            ("[]", "expected a JSON object"),
            (
                r#"{"prompt": "p"}"#,
                "no field `file_name` (nor `image`); it has `prompt`",
            ),
            (r#"{"image": "a.png", "instruction": 3}"#, "`instruction` is no text"),
            (r#"{"image": "a.png", "instruction": " "}"#, "`instruction` is no text"),
            (r#"{"image": [], "prompt": "p"}"#, "`image` names no image"),
            (
                r#"{"image": "../a.png", "prompt": "p"}"#,
                "the path \"../a.png\" does not stay in the bench's folder",
            ),
            (
                r#"{"image": "/a.png", "prompt": "p"}"#,
                "the path \"/a.png\" does not stay in the bench's folder",
            ),
            (
                r#"{"image": "a.png", "prompt": "p", "key": {}}"#,
                "`key` is neither a text nor a number",
            ),
            (
                r#"{"image": "a.png", "prompt": "p", "key": ""}"#,
                "the key has 0 bytes, expected 1 to 80",
            ),
        ] {
            assert_eq!(read(line).unwrap_err(), words, "{line}");
        }
    }

    #[test]
    fn a_key_of_any_kind_names_a_file() {
        let stem = |key: &str| {
            let line = serde_json::json!({"image": "a.png", "prompt": "p", "key": key});
            read(&line.to_string()).unwrap().file_stem()
        };
        assert_eq!(stem("0000_00"), "0000_00");
        assert_eq!(stem("../a b%"), "%2E%2E%2Fa%20b%25");
        assert_eq!(stem("é"), "%C3%A9");
    }
}
