//! One pair of a bench: images and an instruction.

use std::path::PathBuf;

use kontext_core::json_lines::{Fields, paths};
use serde_json::Value;
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
    /// Reads the fields of a line of `metadata.jsonl`. The category is kept unchanged.
    pub(super) fn read(fields: &Fields, line: usize) -> Result<Self, String> {
        let (name, images) = fields.require(&["file_name", "image", "images", "image_path"])?;
        let mut images = paths(name, images)?;
        if images.is_empty() {
            return Err(format!("`{name}` names no image"));
        }
        let listed = |name: &'static str| fields.get(&[name]).map(|(name, value)| paths(name, value)).transpose();
        images.extend(listed("references")?.unwrap_or_default());
        let (name, instruction) = fields.require(&["instruction", "prompt", "text"])?;
        let instruction = instruction.as_str().map(str::trim).filter(|text| !text.is_empty());
        let instruction = instruction.ok_or_else(|| format!("`{name}` is no text"))?.to_owned();
        let category = fields.get(&["category"]).and_then(|(_, value)| value.as_str());
        Ok(Self {
            key: key(fields, line)?,
            instruction,
            category: category.unwrap_or_default().trim().to_owned(),
            images,
            truth: listed("truth")?.and_then(|paths| paths.into_iter().next()),
            candidates: listed("candidates")?.unwrap_or_default(),
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
        derived_seed(run, &self.key)
    }

    /// Returns `true` if the second of two runs is shown first, or on the left, under this seed.
    pub(super) fn is_swapped(seed: u64, key: &str) -> bool {
        draw(seed, key) % 2 == 1
    }
}

/// Returns the seed of a run's item by its name: 32 bits, whatever the other items are.
///
/// ```
/// assert_eq!(kontext_bench::kontextbench::derived_seed(7, "0000_00"), 1_364_829_562);
/// ```
#[must_use]
pub fn derived_seed(run: u64, name: &str) -> u64 {
    u64::from(draw(run, name))
}

/// Hashes a number and a name to 32 bits.
fn draw(seed: u64, name: &str) -> u32 {
    let digest = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(name)
        .finalize();
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Returns `key` or `id`; without them the published form of `image_idx` and `prompt_idx`, or the line
/// number.
fn key(fields: &Fields, line: usize) -> Result<String, String> {
    let number = |name: &'static str| fields.get(&[name]).and_then(|(_, value)| value.as_u64());
    let key = match fields.get(&["key", "id"]) {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Result<Pair, String> {
        Pair::read(&Fields::read(text)?, 12)
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
            (
                "[]",
                "expected a JSON object, got a list; put each object on a line of its own",
            ),
            (
                r#"{"prompt": "p"}"#,
                "no field `file_name` (nor `image`); it has `prompt`",
            ),
            (r#"{"image": "a.png", "instruction": 3}"#, "`instruction` is no text"),
            (r#"{"image": "a.png", "instruction": " "}"#, "`instruction` is no text"),
            (r#"{"image": [], "prompt": "p"}"#, "`image` names no image"),
            (
                r#"{"image": "../a.png", "prompt": "p"}"#,
                "the path \"../a.png\" does not stay in the folder",
            ),
            (
                r#"{"image": "/a.png", "prompt": "p"}"#,
                "the path \"/a.png\" does not stay in the folder",
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
