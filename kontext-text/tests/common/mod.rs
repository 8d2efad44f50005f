//! Shared test helpers: the repository's fixtures, and real tokenizers if their folder exists.

use std::path::{Path, PathBuf};

use kontext_text::{ClipConfig, T5Config, Tokenizer};
use serde_json::Value;
use tempfile::TempDir;

pub use kontext_fixtures::reference as fixture;

/// Returns a path in the assets folder outside the repository; prints a note and returns `None` if it is
/// absent.
pub fn asset(path: &str) -> Option<PathBuf> {
    let full = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/assets")
        .join(path);
    if !full.exists() {
        println!("skipped: {} is not there", full.display());
    }
    full.exists().then_some(full)
}

/// Reads tokens.json.
pub fn tokens() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("tokens.json")).unwrap()).unwrap()
}

/// Creates a folder with the tiny CLIP tokenizer's `vocab.json` and `merges.txt`.
pub fn tiny_clip_folder() -> TempDir {
    let (folder, tokens) = (tempfile::tempdir().unwrap(), tokens());
    let files = &tokens["tiny"]["clip"];
    let merges: Vec<_> = files["merges.txt"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line.as_str().unwrap())
        .collect();
    write(&folder, "vocab.json", &files["vocab.json"].to_string());
    write(&folder, "merges.txt", &merges.join("\n"));
    folder
}

/// Creates a folder with the tiny T5 tokenizer's `tokenizer.json`.
pub fn tiny_t5_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder,
        "tokenizer.json",
        &tokens()["tiny"]["t5"]["tokenizer.json"].to_string(),
    );
    folder
}

pub fn tiny_clip() -> Tokenizer {
    Tokenizer::open(tiny_clip_folder().path()).unwrap()
}

pub fn tiny_t5() -> Tokenizer {
    Tokenizer::open(tiny_t5_folder().path()).unwrap()
}

pub fn write(folder: &TempDir, name: &str, text: &str) {
    std::fs::write(folder.path().join(name), text).unwrap();
}

/// Joins the messages of an error and its sources.
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// Returns the configuration of a tiny T5 that fits the tiny tokenizer.
pub fn tiny_t5_config() -> T5Config {
    T5Config {
        vocab_size: 160,
        d_model: 24,
        d_kv: 8,
        d_ff: 40,
        num_layers: 2,
        num_heads: 5,
        ..T5Config::xxl()
    }
}

/// Returns the configuration of a tiny CLIP that fits the tiny tokenizer.
pub fn tiny_clip_config() -> ClipConfig {
    ClipConfig {
        vocab_size: 634,
        hidden_size: 128,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        ..ClipConfig::large()
    }
}
