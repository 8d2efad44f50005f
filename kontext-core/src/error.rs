//! The one error type of all kontext crates.

use std::io;
use std::path::PathBuf;

use image::ImageError;
use tch::TchError;

use crate::CheckpointError;

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
        Error::Torch {
            during: "computing",
            source: TorchError { message },
        }
    }
}

impl Error {
    /// An [`Error::InvalidArgument`].
    pub fn invalid(name: &'static str, expected: impl Into<String>, got: impl std::fmt::Display) -> Self {
        Error::InvalidArgument {
            name,
            expected: expected.into(),
            got: format!("{got}"),
        }
    }

    /// Attaches a path to an I/O error: `fs::read(p).map_err(Error::io(p))`. Common ones are put
    /// in words that say what to do.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io {
            path,
            source: with_remedy(source),
        }
    }

    /// Attaches a path to a picture error; an I/O error inside it becomes [`Error::Io`].
    pub fn image(path: impl Into<PathBuf>) -> impl FnOnce(ImageError) -> Self {
        let path = path.into();
        move |source| match source {
            // Decoders tell of a file that ends early in this way.
            ImageError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => Error::io(path)(source),
            source => Error::Image {
                reason: picture_reason(&source),
                path,
            },
        }
    }

    /// Attaches a path to a checkpoint error.
    pub fn checkpoint(path: impl Into<PathBuf>) -> impl FnOnce(CheckpointError) -> Self {
        let path = path.into();
        move |source| Error::Checkpoint { path, source }
    }

    /// A [`CheckpointError::Config`] with its path.
    pub fn config(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Checkpoint {
            path: path.into(),
            source: CheckpointError::Config { reason: reason.into() },
        }
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
            Error::Torch {
                during: "computing",
                source,
            } => Error::Torch { during: stage, source },
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
        let Error::Torch { during, source } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*during, "testing");
        assert!(!source.to_string().contains('\n'));
        assert!(source.to_string().contains("invalid for input of size 3"), "{source}");
    }

    #[test]
    fn the_error_stays_small() {
        assert!(std::mem::size_of::<Error>() <= 128);
    }
}
