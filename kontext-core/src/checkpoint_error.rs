//! Errors in the files of a model.

use crate::{printable, printable_lines, shortened};

/// Characters of a name in a file that a message shows.
const LONGEST_NAME: usize = 200;
/// Characters of a reason, which may quote a file.
const LONGEST_REASON: usize = 2000;

/// A reason why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A missing tensor.
    #[error(
        "no tensor {}{}; the file is incomplete or of another model, fetch the right one",
        quoted(name), nearest.as_ref().map(|n| format!(" (nearest: {})", quoted(n))).unwrap_or_default()
    )]
    Missing {
        /// The tensor's name in this checkpoint's naming.
        name: String,
        /// The nearest name in the file, if one is similar enough.
        nearest: Option<String>,
    },
    /// Tensors that no part of the model reads.
    #[error("{} that the model does not know: {}; the file is of another model, fetch the right one", count(names.len()), list(names))]
    Unused {
        /// The tensors' names.
        names: Vec<String>,
    },
    /// A tensor whose shape differs from the configuration.
    #[error(
        "tensor {} has shape {got:?}, the configuration asks for {expected:?}; they are of different models, take both from one",
        quoted(name)
    )]
    Shape {
        /// The tensor's name.
        name: String,
        /// The shape that follows from the configuration.
        expected: Vec<i64>,
        /// The shape in the file.
        got: Vec<i64>,
    },
    /// A tensor with a dtype that weights cannot have.
    #[error(
        "tensor {} has dtype {}; expected one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2, fetch the file in one of them",
        quoted(name),
        text(dtype)
    )]
    Dtype {
        /// The tensor's name.
        name: String,
        /// The dtype in the file.
        dtype: String,
    },
    /// An invalid safetensors file.
    #[error(
        "not a valid safetensors file: {}; it may be truncated or damaged, fetch it again",
        text(reason)
    )]
    Header {
        /// The parser's message.
        reason: String,
    },
    /// A GGUF file that cannot be used.
    #[error("cannot use this GGUF file: {}", text(reason))]
    Gguf {
        /// The problem and its remedy.
        reason: String,
    },
    /// A quantised weight with side tensors that do not fit it.
    #[error(
        "cannot use the quantised weight {}: {}; the file is damaged or incomplete, fetch it again",
        quoted(name),
        text(reason)
    )]
    Quantised {
        /// The weight's name.
        name: String,
        /// The mismatch and the expected value.
        reason: String,
    },
    /// A file of another format.
    #[error("not a safetensors file but {found}; {remedy}")]
    Format {
        /// The detected format: "a Git LFS pointer".
        found: &'static str,
        /// The remedy.
        remedy: &'static str,
    },
    /// A configuration file that cannot be used.
    #[error("the configuration cannot be used: {}", text(reason))]
    Config {
        /// The problem, with the field's name.
        reason: String,
    },
    /// Tensors or layers of a LoRA that match nothing in the model.
    #[error("{} of {total} parts of the LoRA fit nothing in the model: {}; take a LoRA of this model, or allow them by name (`allow_unmatched`)", parts.len(), first(parts))]
    LoraUnmatched {
        /// The name of each, with the known details.
        parts: Vec<String>,
        /// Total number of tensors or layers in the file.
        total: usize,
    },
    /// A LoRA without any effect on the model.
    #[error(
        "the LoRA would change nothing: {}; take another file, or allow it (`allow_no_effect`)",
        text(reason)
    )]
    LoraWithoutEffect {
        /// The reason.
        reason: String,
    },
    /// A LoRA that cannot be read.
    #[error("the LoRA cannot be used: {}", text(reason))]
    Lora {
        /// The problem and its remedy.
        reason: String,
    },
    /// A part of the model without a file.
    #[error(
        "no {part} found; looked for {}{}; fetch what is missing or name another path",
        text(looked),
        instead(found)
    )]
    MissingPart {
        /// The part: "transformer", "VAE", "T5 tokenizer".
        part: &'static str,
        /// The places searched, comma-separated.
        looked: String,
        /// Files and folders found in these places that cannot be used, each with the reason or the remedy.
        found: Vec<String>,
    },
    /// Several files of which only one can be meant.
    #[error("{} for {}: {}; {}", files(found.len()), text(part), first_by(" and ", found), text(remedy))]
    Ambiguous {
        /// The object that each of them could be, with its article: "the VAE", "the tensor `x`".
        part: String,
        /// The files or folders.
        found: Vec<String>,
        /// The remedy.
        remedy: String,
    },
    /// Weights of another model, or in a form that is not read.
    #[error("it is {}; {}", text(found), text(remedy))]
    Unsupported {
        /// The model or the form: "the transformer of FLUX.2".
        found: String,
        /// The remedy.
        remedy: String,
    },
}

/// Lists what was found instead of a part.
fn instead(found: &[String]) -> String {
    if found.is_empty() {
        String::new()
    } else {
        format!("; found instead {}", first(found))
    }
}

fn files(count: usize) -> String {
    match count {
        2 => "two files".to_owned(),
        count => format!("{count} files"),
    }
}

fn count(tensors: usize) -> String {
    if tensors == 1 {
        "1 tensor".to_owned()
    } else {
        format!("{tensors} tensors")
    }
}

/// Joins the first few names: enough to see the pattern, short enough for one line.
fn list(names: &[String]) -> String {
    first(&names.iter().map(|name| quoted(name)).collect::<Vec<_>>())
}

/// Returns the name of a tensor as a message shows it.
fn quoted(name: &str) -> String {
    format!("`{}`", shortened(&printable(name), LONGEST_NAME))
}

/// Returns a reason as a message shows it. It may quote a file, and have lines.
pub(crate) fn text(reason: &str) -> String {
    shortened(&printable_lines(reason), LONGEST_REASON)
}

fn first(parts: &[String]) -> String {
    first_by(", ", parts)
}

fn first_by(separator: &str, parts: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = parts.iter().take(SHOWN).map(|part| text(part)).collect();
    let mut all = shown.join(separator);
    if parts.len() > SHOWN {
        all.push_str(", …");
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_reasons_from_files_are_shown_printable_and_short() {
        let name = format!("a\u{1b}[2J\n{}", "b".repeat(100_000));
        let (reason, nearest) = (name.clone(), Some(name.clone()));
        let shape = (vec![1], vec![2]);
        let all = |name: &String| vec![name.clone(); 5];
        for error in [
            CheckpointError::Missing {
                name: name.clone(),
                nearest,
            },
            CheckpointError::Unused { names: all(&name) },
            CheckpointError::Shape {
                name: name.clone(),
                expected: shape.0,
                got: shape.1,
            },
            CheckpointError::Dtype {
                name: name.clone(),
                dtype: name.clone(),
            },
            CheckpointError::Header { reason: reason.clone() },
            CheckpointError::Gguf { reason: reason.clone() },
            CheckpointError::Quantised {
                name: name.clone(),
                reason: reason.clone(),
            },
            CheckpointError::Config { reason: reason.clone() },
            CheckpointError::LoraUnmatched {
                parts: all(&name),
                total: 5,
            },
            CheckpointError::LoraWithoutEffect { reason: reason.clone() },
            CheckpointError::Lora { reason: reason.clone() },
            CheckpointError::MissingPart {
                part: "VAE",
                looked: name.clone(),
                found: all(&name),
            },
            CheckpointError::Ambiguous {
                part: name.clone(),
                found: all(&name),
                remedy: name.clone(),
            },
            CheckpointError::Unsupported {
                found: name.clone(),
                remedy: reason,
            },
        ] {
            let shown = error.to_string();
            assert!(
                shown.contains("a\\u{1b}[2J") && !shown.contains('\u{1b}'),
                "{shown:.300}"
            );
            assert!(shown.len() < 14_000, "{}", shown.len());
        }
    }
}
