//! The one error type of all kontext crates.

use std::io;
use std::path::PathBuf;

use image::ImageError;
use tch::TchError;

/// A result with [`Error`] as its error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can go wrong, grouped by who can put it right.
///
/// A message never repeats its source: print the whole chain (`{:#}` of anyhow, or a loop over
/// [`std::error::Error::source`]) to see the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller passed a value outside its range.
    #[error("invalid {name}: expected {expected}, got {got}")]
    InvalidArgument {
        /// The argument's name as the caller knows it.
        name: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What came instead.
        got: String,
    },
    /// The caller of a part passed a tensor of another shape.
    #[error("{tensor}: expected shape {expected}, got {got:?}")]
    Shape {
        /// The tensor's name in the part's documentation.
        tensor: &'static str,
        /// The expected shape, in the letters of the documentation.
        expected: &'static str,
        /// The shape that came.
        got: Vec<i64>,
    },
    /// A file or folder of weights does not hold what the model needs.
    #[error("cannot load {}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CheckpointError,
    },
    /// The tokenizer's files cannot be used.
    #[error("cannot use the tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// The tokenizer's file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The machine refused access to a file or folder.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer, and what to do.
        #[source]
        source: io::Error,
    },
    /// A picture cannot be decoded or encoded.
    #[error("cannot use the picture {}: {reason}", path.display())]
    Image {
        /// The picture's file.
        path: PathBuf,
        /// The decoder's or encoder's answer, and what to do.
        reason: String,
    },
    /// The device that was asked for is not there.
    #[error("device {device} is not available: {reason}")]
    Device {
        /// The device, as [`crate::device::parse`] reads it.
        device: String,
        /// Why, and what to do.
        reason: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch failed while {during}")]
    Torch {
        /// The stage, as a gerund: "decoding latents".
        during: &'static str,
        /// libtorch's own words.
        #[source]
        source: TorchError,
    },
    /// There is less memory than a stage of a run takes.
    #[error("{stage} takes {needed_mb} MB of memory and {available_mb} MB are free; {remedy}")]
    Memory {
        /// The stage, as a gerund: "denoising".
        stage: &'static str,
        /// What it takes, in 10^6 bytes.
        needed_mb: u64,
        /// What is free, in 10^6 bytes.
        available_mb: u64,
        /// The next smaller setting.
        remedy: String,
    },
    /// A stage produced NaN or infinite values.
    #[error("{stage} produced values that are not finite ({hint})")]
    NotFinite {
        /// The stage: "text encoding", "denoising step 3".
        stage: String,
        /// The likely cause, and what to do.
        hint: String,
    },
    /// A training run has left the range in which it learns.
    #[error(
        "training step {step}: the loss is {loss:.4} and stays far above its usual {usual:.4}; \
         the last saved state is kept, resume from it with a lower learning rate"
    )]
    Diverged {
        /// Steps that were done.
        step: u64,
        /// The loss.
        loss: f64,
        /// The mean of the losses before.
        usual: f64,
    },
    /// The caller asked to stop.
    #[error("cancelled after {done} of {total} steps")]
    Cancelled {
        /// Steps that were finished.
        done: usize,
        /// Steps that were asked for.
        total: usize,
    },
}

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

/// The operating system's answer in the words of someone who wants to go on.
fn with_remedy(source: io::Error) -> io::Error {
    use io::ErrorKind as Kind;
    let words = match source.kind() {
        Kind::NotFound => "there is no such file or folder; check the path",
        Kind::PermissionDenied => "permission denied; check its owner and permissions",
        Kind::IsADirectory => "it is a folder, expected a file; name a file",
        Kind::NotADirectory => "a part of the path is a file, expected a folder; check the path",
        Kind::ReadOnlyFilesystem => "the file system is read-only; choose another folder",
        Kind::StorageFull | Kind::QuotaExceeded => "the disk is full; free some space",
        Kind::UnexpectedEof | Kind::InvalidData => "its content is damaged; fetch it again",
        _ => return source,
    };
    io::Error::new(source.kind(), words)
}

/// A decoder's or encoder's answer, and what to do.
fn picture_reason(error: &ImageError) -> String {
    let remedy = match error {
        ImageError::Unsupported(_) => "give a PNG, JPEG or WebP file",
        ImageError::Limits(_) => "make it smaller",
        ImageError::Decoding(_) | ImageError::IoError(_) => "the file is damaged, fetch or save it again",
        ImageError::Encoding(_) | ImageError::Parameter(_) => "choose another format or size",
    };
    // Some decoders break their lines or end in a full stop.
    let words = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}; {remedy}", words.trim_end_matches('.'))
}

fn count(tensors: usize) -> String {
    if tensors == 1 { "1 tensor".to_owned() } else { format!("{tensors} tensors") }
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

/// libtorch's error, without the C++ stack that it appends.
#[derive(Debug)]
pub struct TorchError {
    message: String,
}

impl std::fmt::Display for TorchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TorchError {}

impl From<TchError> for Error {
    fn from(source: TchError) -> Self {
        let text = match source {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        let message = text.lines().next().unwrap_or("unknown error").trim().to_owned();
        Error::Torch { during: "computing", source: TorchError { message } }
    }
}

impl Error {
    /// An [`Error::InvalidArgument`].
    pub fn invalid(name: &'static str, expected: impl Into<String>, got: impl std::fmt::Display) -> Self {
        Error::InvalidArgument { name, expected: expected.into(), got: format!("{got}") }
    }

    /// Attaches a path to an I/O error: `fs::read(p).map_err(Error::io(p))`. Common ones are put
    /// in words that say what to do.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source: with_remedy(source) }
    }

    /// Attaches a path to a picture error; an I/O error inside it becomes [`Error::Io`].
    pub fn image(path: impl Into<PathBuf>) -> impl FnOnce(ImageError) -> Self {
        let path = path.into();
        move |source| match source {
            // Decoders tell of a file that ends early in this way.
            ImageError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => Error::io(path)(source),
            source => Error::Image { reason: picture_reason(&source), path },
        }
    }

    /// Attaches a path to a checkpoint error.
    pub fn checkpoint(path: impl Into<PathBuf>) -> impl FnOnce(CheckpointError) -> Self {
        let path = path.into();
        move |source| Error::Checkpoint { path, source }
    }

    /// A [`CheckpointError::Config`] with its path.
    pub fn config(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Checkpoint { path: path.into(), source: CheckpointError::Config { reason: reason.into() } }
    }

    /// Whether the caller asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Cancelled { .. })
    }

    /// Whether the device or the host ran out of memory.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Error::Memory { .. } => true,
            Error::Torch { source, .. } => {
                let text = source.message.to_ascii_lowercase();
                text.contains("out of memory") || text.contains("can't allocate memory")
            }
            _ => false,
        }
    }
}

/// Names the stage in which libtorch failed.
pub trait During<T> {
    /// Sets the stage (a gerund: "decoding latents") of an [`Error::Torch`] that has none yet.
    ///
    /// # Errors
    /// The error that came in, with its stage named.
    fn during(self, stage: &'static str) -> Result<T>;
}

impl<T> During<T> for Result<T> {
    fn during(self, stage: &'static str) -> Result<T> {
        self.map_err(|error| match error {
            Error::Torch { during: "computing", source } => Error::Torch { during: stage, source },
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torch_error_is_one_line_with_its_stage() {
        let error = tch::Tensor::f_arange(3, (tch::Kind::Float, tch::Device::Cpu))
            .and_then(|t| t.f_reshape([2, 2]))
            .map_err(Error::from);
        let error = error.during("testing").unwrap_err();
        let Error::Torch { during, source } = &error else { panic!("{error:?}") };
        assert_eq!(*during, "testing");
        assert!(!source.to_string().contains('\n'));
        assert!(source.to_string().contains("invalid for input of size 3"), "{source}");
    }

    #[test]
    fn the_error_stays_small() {
        assert!(std::mem::size_of::<Error>() <= 128);
    }
}
