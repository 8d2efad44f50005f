//! Locating and reading a tokenizer's files.

use std::path::{Path, PathBuf};

use kontext_core::{Error, Result, utf8};
use serde_json::Value;

use super::{Tokenizer, checks, clip_bpe};

/// Remedy for an unusable tokenizer, appended to errors.
pub(super) const REMEDY: &str = "to make a usable tokenizer.json, run in Python: \
     from transformers import AutoTokenizer; AutoTokenizer.from_pretrained(\"THE FOLDER\").save_pretrained(\"THE FOLDER\")";

const JSON: &str = "tokenizer.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const SENTENCEPIECE: &str = "spiece.model";
/// The settings, in the order of precedence of their older form.
const SETTINGS: [&str; 2] = ["special_tokens_map.json", "tokenizer_config.json"];

/// A format of tokenizers, with its place.
enum Format {
    /// CLIP's two files, in this folder.
    Clip(PathBuf),
    /// A `tokenizer.json`, and the folder of its settings, if they are its own.
    Json(PathBuf, Option<PathBuf>),
    SentencePiece(PathBuf),
}

impl Format {
    /// Finds the format that a path offers; `None` for a folder without one.
    fn at(path: &Path) -> Option<Self> {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let folder = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        if path.is_dir() {
            Self::of_folder(path)
        } else if name == VOCAB || name == MERGES {
            Some(Self::Clip(folder.to_owned()))
        } else if name.ends_with(".model") {
            Some(Self::SentencePiece(path.to_owned()))
        } else {
            // For a file of another name, the neighbouring settings may belong to another tokenizer.
            Some(Self::Json(path.to_owned(), (name == JSON).then(|| folder.to_owned())))
        }
    }

    fn of_folder(folder: &Path) -> Option<Self> {
        let holds = |name: &str| folder.join(name).is_file();
        if holds(VOCAB) && holds(MERGES) {
            Some(Self::Clip(folder.to_owned()))
        } else if holds(JSON) {
            Some(Self::Json(folder.join(JSON), Some(folder.to_owned())))
        } else {
            holds(SENTENCEPIECE).then(|| Self::SentencePiece(folder.join(SENTENCEPIECE)))
        }
    }
}

pub(super) fn open(path: &Path) -> Result<Tokenizer> {
    match Format::at(path) {
        Some(Format::Clip(folder)) => open_clip(&folder),
        Some(Format::Json(file, settings)) => open_json(&file, settings.as_deref()),
        Some(Format::SentencePiece(file)) => Err(sentencepiece(&file)),
        None => {
            let reason = format!("the folder holds neither {JSON} nor {VOCAB} with {MERGES}; fetch them again");
            Err(Error::Tokenizer {
                path: path.to_owned(),
                reason,
            })
        }
    }
}

/// Lists the files that opening this path reads.
pub(super) fn read_by_opening(path: &Path) -> Vec<PathBuf> {
    let (mut files, settings) = match Format::at(path) {
        Some(Format::Clip(folder)) => ([VOCAB, MERGES].map(|name| folder.join(name)).to_vec(), Some(folder)),
        Some(Format::Json(file, settings)) => (vec![file], settings),
        Some(Format::SentencePiece(_)) | None => (Vec::new(), None),
    };
    if let Some(folder) = settings {
        let settings = SETTINGS.map(|name| folder.join(name));
        files.extend(settings.into_iter().filter(|file| file.is_file()));
    }
    files
}

fn open_clip(folder: &Path) -> Result<Tokenizer> {
    let unusable = |reason: String| Error::Tokenizer {
        path: folder.to_owned(),
        reason,
    };
    let vocab = serde_json::from_str(&read(&folder.join(VOCAB))?);
    let vocab = vocab.map_err(|e| unusable(format!("{VOCAB}: {e}; fetch it again")))?;
    let inner = clip_bpe::build(vocab, &read(&folder.join(MERGES))?).map_err(unusable)?;
    let tokenizer = Tokenizer::new(inner, folder, pad_token(folder)?.as_deref())?;
    Ok(Tokenizer {
        whole_words_lowered: true,
        ..tokenizer
    })
}

fn open_json(file: &Path, settings: Option<&Path>) -> Result<Tokenizer> {
    let unusable = |reason: String| Error::Tokenizer {
        path: file.to_owned(),
        reason,
    };
    let json = serde_json::from_str(&read(file)?);
    let mut json: Value = json.map_err(|e| unusable(format!("it is no JSON ({e}); {REMEDY}")))?;
    checks::merges(&json).map_err(unusable)?;
    checks::charsmaps(&json).map_err(unusable)?;
    checks::patterns(&json).map_err(unusable)?;
    // Random merges are for training; with them the same prompt would get other ids at each run.
    if let Some(dropout) = json.pointer_mut("/model/dropout") {
        *dropout = Value::Null;
    }
    let inner = serde_json::from_value(json).map_err(|e| unusable(format!("{e}; {REMEDY}")))?;
    let pad = settings.map(pad_token).transpose()?.flatten();
    Tokenizer::new(inner, file, pad.as_deref())
}

/// Reads a text file of a tokenizer.
fn read(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).map_err(Error::io(file))?;
    let text = utf8(&bytes).map_err(|reason| Error::Tokenizer {
        path: file.to_owned(),
        reason: reason.to_owned(),
    })?;
    Ok(text.to_owned())
}

fn sentencepiece(file: &Path) -> Error {
    let reason = format!("a SentencePiece model is not read directly; {REMEDY}");
    Error::Tokenizer {
        path: file.to_owned(),
        reason,
    }
}

/// Reads the padding token from the settings in a folder.
///
/// As in transformers, `special_tokens_map.json` takes precedence unless `tokenizer_config.json` has the
/// newer form, which lists its added tokens.
fn pad_token(folder: &Path) -> Result<Option<String>> {
    let [map, config] = SETTINGS.map(|name| settings(&folder.join(name)));
    let (map, config) = (map?, config?);
    let order = if config.get("added_tokens_decoder").is_some() {
        [config, Value::Null]
    } else {
        [map, config]
    };
    Ok(order.iter().find_map(|value| token(&value["pad_token"])))
}

/// Returns a token's text; tokens are stored as a string or as an object with options.
fn token(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

fn settings(file: &Path) -> Result<Value> {
    if !file.is_file() {
        return Ok(Value::Null);
    }
    let text = read(file)?;
    let broken = |e: serde_json::Error| Error::Tokenizer {
        path: file.to_owned(),
        reason: format!("it is no JSON ({e}); fetch it again"),
    };
    serde_json::from_str(&text).map_err(broken)
}
