//! What can be wrong with the files of a model.

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A tensor that the model needs is not there.
    #[error("no tensor `{name}`{}; the file is incomplete or of another model, fetch the right one", nearest.as_ref().map(|n| format!(" (nearest: `{n}`)")).unwrap_or_default())]
    Missing {
        /// The tensor's name in this checkpoint's naming.
        name: String,
        /// The nearest name that is there, if any is near.
        nearest: Option<String>,
    },
    /// Tensors that no part of the model reads.
    #[error("{} that the model does not know: {}; the file is of another model, fetch the right one", count(names.len()), list(names))]
    Unused {
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "tensor `{name}` has shape {got:?}, the configuration asks for {expected:?}; they are of different models, take both from one"
    )]
    Shape {
        /// The tensor's name.
        name: String,
        /// The shape that the configuration gives.
        expected: Vec<i64>,
        /// The shape in the file.
        got: Vec<i64>,
    },
    /// A tensor holds a type that is no weight.
    #[error(
        "tensor `{name}` has dtype {dtype}; expected one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2, fetch the file in one of them"
    )]
    Dtype {
        /// The tensor's name.
        name: String,
        /// The dtype in the file.
        dtype: String,
    },
    /// The file is not a valid safetensors file.
    #[error("not a valid safetensors file: {reason}; it may be truncated or damaged, fetch it again")]
    Header {
        /// The parser's words.
        reason: String,
    },
    /// The file is no GGUF file that can be used.
    #[error("cannot use this GGUF file: {reason}")]
    Gguf {
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// What stands beside a quantised weight does not fit it.
    #[error("cannot use the quantised weight `{name}`: {reason}; the file is damaged or incomplete, fetch it again")]
    Quantised {
        /// The weight's name.
        name: String,
        /// What does not fit, and what was expected.
        reason: String,
    },
    /// The file is of another format.
    #[error("not a safetensors file but {found}; {remedy}")]
    Format {
        /// What it looks like: "a Git LFS pointer".
        found: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A configuration file cannot be used.
    #[error("the configuration cannot be used: {reason}")]
    Config {
        /// What is wrong, with the field's name.
        reason: String,
    },
    /// Tensors or layers of a LoRA for which the model has no place.
    #[error("{} of {total} parts of the LoRA fit nothing in the model: {}; take a LoRA of this model, or allow them by name (`allow_unmatched`)", parts.len(), first(parts))]
    LoraUnmatched {
        /// Each one's name, with what is known of it.
        parts: Vec<String>,
        /// Number of all, tensors of the file or layers.
        total: usize,
    },
    /// A LoRA that leaves the model as it is.
    #[error("the LoRA would change nothing: {reason}; take another file, or allow it (`allow_no_effect`)")]
    LoraWithoutEffect {
        /// Why.
        reason: String,
    },
    /// A LoRA that cannot be read.
    #[error("the LoRA cannot be used: {reason}")]
    Lora {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A part of the model has no file.
    #[error("no {part} found; looked for {looked}; fetch what is missing or name another path")]
    MissingPart {
        /// The part: "transformer", "VAE", "T5 tokenizer".
        part: &'static str,
        /// The places, comma separated.
        looked: String,
    },
}

fn count(tensors: usize) -> String {
    if tensors == 1 {
        "1 tensor".to_owned()
    } else {
        format!("{tensors} tensors")
    }
}

/// The first few names: enough to see the pattern, short enough for one line.
fn list(names: &[String]) -> String {
    first(&names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>())
}

fn first(parts: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = parts.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if parts.len() > SHOWN {
        text.push_str(", …");
    }
    text
}
