//! The error type shared by all kontext crates.

use std::io;
use std::path::{Path, PathBuf};

use image::ImageError;
use tch::TchError;

use crate::{CheckpointError, Stage, printable, shortened};

/// A result whose error defaults to [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Characters of a received value that a message shows.
const SHOWN: usize = 200;

/// Any error of the kontext crates.
///
/// The variants by the person who can act:
/// - the caller, by other arguments: [`Error::InvalidArgument`], [`Error::Shape`];
/// - the owner of the files: [`Error::Checkpoint`], [`Error::Tokenizer`], [`Error::Io`], [`Error::Image`];
/// - the caller, by smaller settings, or the owner of the machine: [`Error::Device`], [`Error::Memory`],
///   [`Error::Allocation`], [`Error::Torch`];
/// - the author of the weights or of the recipe: [`Error::NotFinite`], [`Error::Diverged`];
/// - nobody, because the caller asked for it: [`Error::Cancelled`];
/// - the developers of kontext: [`Error::Bug`].
///
/// A message never repeats its source: print the whole chain (`{:#}` of anyhow, or a loop over
/// [`std::error::Error::source`]) to see the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value outside its range, passed by the caller, who can pass one of the accepted values.
    #[error("invalid {name}: expected {expected}, got {got}")]
    InvalidArgument {
        /// The argument's name as the caller knows it.
        name: &'static str,
        /// The accepted values.
        expected: String,
        /// The value received: printable, and shortened to 200 characters.
        got: String,
    },
    /// A tensor of the wrong shape, passed by the caller of a part, who can reshape it.
    #[error("{tensor}: expected shape {expected}, got {got:?}")]
    Shape {
        /// The tensor's name in the part's documentation.
        tensor: &'static str,
        /// The expected shape, in the letters of the documentation.
        expected: &'static str,
        /// The shape received.
        got: Vec<i64>,
    },
    /// Weights that cannot be loaded: a file or a folder, which its owner can replace or convert.
    #[error("cannot load {}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: CheckpointError,
    },
    /// A tokenizer whose files cannot be used; their owner can replace them.
    #[error("cannot use the tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// The tokenizer's file or folder.
        path: PathBuf,
        /// The problem and its remedy.
        reason: String,
    },
    /// A file or folder to which the machine refused access; its owner can grant it or free some space.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error and the remedy.
        #[source]
        source: io::Error,
    },
    /// An image that cannot be decoded or encoded; its owner can replace it.
    #[error("cannot use the image{}: {reason}", after_space(path))]
    Image {
        /// The image file; empty for an image in memory.
        path: PathBuf,
        /// The decoder's or encoder's message and the remedy.
        reason: String,
    },
    /// A requested device that is not available; the caller can name another one.
    #[error("device {device} is not available: {reason}")]
    Device {
        /// The device, such as "cuda:0".
        device: String,
        /// The reason and the remedy.
        reason: String,
    },
    /// An operation that libtorch refused: for lack of memory ([`Error::is_out_of_memory`]), of which the
    /// caller can take less, or because of the device or its driver, which the machine's owner can check.
    #[error("libtorch failed while {stage}")]
    Torch {
        /// The stage; [`Stage::Compute`] if none is known.
        stage: Stage,
        /// libtorch's message.
        #[source]
        source: TorchError,
    },
    /// Too little free memory for a stage; the caller can take the smaller setting that the remedy names.
    #[error("{stage} takes {needed_mb} MB of memory and {available_mb} MB are free; {remedy}")]
    Memory {
        /// The stage with the highest use.
        stage: Stage,
        /// Memory the stage needs, in 10^6 bytes.
        needed_mb: u64,
        /// Free memory, in 10^6 bytes.
        available_mb: u64,
        /// The next smaller setting.
        remedy: String,
    },
    /// Memory that the system refused; the caller can give a smaller input, or free some memory.
    #[error("cannot allocate {mb} MB for {purpose}; give a smaller one, or free some memory")]
    Allocation {
        /// The thing that needs the memory: "the decoded image".
        purpose: &'static str,
        /// Its size, in 10^6 bytes.
        mb: u128,
    },
    /// NaN or infinite values produced by a stage; the caller can fetch damaged weights again, take a wider
    /// dtype, or train at a lower rate.
    #[error("{stage} produced values that are not finite ({hint})")]
    NotFinite {
        /// The stage.
        stage: Stage,
        /// The likely cause and the remedy.
        hint: String,
    },
    /// A diverged training run; the recipe's author can lower the learning rate and resume.
    #[error("training step {step}: the loss is {loss:.4} and stays far above its usual {usual:.4}; {hint}")]
    Diverged {
        /// Steps done.
        step: u64,
        /// The loss.
        loss: f64,
        /// Mean of the previous losses.
        usual: f64,
        /// The remedy.
        hint: String,
    },
    /// A thread that could not start, for which the machine needs more resources, or that panicked.
    #[error("the thread of the run failed: {reason}")]
    Thread {
        /// The system's error, or the message of the panic.
        reason: String,
    },
    /// A stop requested by the caller; nobody needs to act.
    #[error("cancelled after {done} of {total} steps")]
    Cancelled {
        /// Steps finished.
        done: usize,
        /// Steps requested.
        total: usize,
    },
    /// A condition that no caller, file or machine can cause. Only the developers can act: please report it.
    #[error("{what}: this is a bug in kontext; please report it")]
    Bug {
        /// The condition that was broken.
        what: String,
    },
}

/// Returns the path after a space; nothing for an empty one.
fn after_space(path: &Path) -> String {
    if path.as_os_str().is_empty() {
        String::new()
    } else {
        format!(" {}", path.display())
    }
}

/// Replaces the message of a common I/O error with one that names the remedy.
fn with_remedy(source: io::Error) -> io::Error {
    use io::ErrorKind as Kind;
    let words = match source.kind() {
        Kind::NotFound => "there is no such file or folder; check the path",
        Kind::PermissionDenied => "permission denied; check its owner and permissions",
        Kind::IsADirectory => "it is a folder, expected a file; name a file",
        Kind::NotADirectory => "a part of the path is a file, expected a folder; check the path",
        Kind::ReadOnlyFilesystem => "the file system is read-only; choose another folder",
        Kind::InvalidFilename => {
            "the name is too long, or has characters that the file system does not take; choose another"
        }
        Kind::OutOfMemory => "the system refuses the memory or address space for it; free some, or raise `ulimit -v`",
        Kind::StorageFull | Kind::QuotaExceeded => "the disk is full; free some space",
        Kind::UnexpectedEof | Kind::InvalidData => "its content is damaged; fetch it again",
        _ => return source,
    };
    io::Error::new(source.kind(), words)
}

/// Returns a decoder's or encoder's message and the remedy.
fn image_reason(error: &ImageError) -> String {
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

/// libtorch's error message, without the C++ stack trace appended to it.
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
            stage: Stage::Compute,
            source: TorchError { message },
        }
    }
}

impl Error {
    /// Creates an [`Error::InvalidArgument`]. Of `got`, control characters are escaped, and the middle of a long
    /// text is left out.
    pub fn invalid(name: &'static str, expected: impl Into<String>, got: impl std::fmt::Display) -> Self {
        Error::InvalidArgument {
            name,
            expected: expected.into(),
            got: shortened(&printable(&got.to_string()), SHOWN),
        }
    }

    /// Creates an [`Error::Bug`]; `what` is the condition that was broken, as a phrase: "a run of no images".
    pub fn bug(what: impl Into<String>) -> Self {
        Error::Bug { what: what.into() }
    }

    /// Attaches a path to an I/O error: `fs::read(p).map_err(Error::io(p))`. Common errors get a message that
    /// names the remedy.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io {
            path,
            source: with_remedy(source),
        }
    }

    /// Attaches a path to an image error; an I/O error inside it becomes [`Error::Io`].
    pub fn image(path: impl Into<PathBuf>) -> impl FnOnce(ImageError) -> Self {
        let path = path.into();
        move |source| match source {
            // Decoders report a truncated file in this way.
            ImageError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => Error::io(path)(source),
            source => Error::Image {
                reason: image_reason(&source),
                path,
            },
        }
    }

    /// Attaches a path to a checkpoint error.
    pub fn checkpoint(path: impl Into<PathBuf>) -> impl FnOnce(CheckpointError) -> Self {
        let path = path.into();
        move |source| Error::Checkpoint { path, source }
    }

    /// Creates a [`CheckpointError::Config`] with its path.
    pub fn config(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Checkpoint {
            path: path.into(),
            source: CheckpointError::Config { reason: reason.into() },
        }
    }

    /// Turns an [`Error::InvalidArgument`] about a number of a configuration file into an error of that file; other
    /// errors stay as they are.
    pub fn in_config(path: impl Into<PathBuf>) -> impl FnOnce(Self) -> Self {
        let path = path.into();
        move |error| match error {
            Error::InvalidArgument { .. } => Error::config(path, format!("{error}; correct it or fetch it again")),
            error => error,
        }
    }

    /// Returns `true` if the caller asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Cancelled { .. })
    }

    /// Returns `true` if no caller, file or machine caused the error: it should be reported.
    #[must_use]
    pub fn is_bug(&self) -> bool {
        matches!(self, Error::Bug { .. })
    }

    /// Returns `true` if the device or the host ran out of memory.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Error::Memory { .. } | Error::Allocation { .. } => true,
            Error::Torch { source, .. } => is_shortage(&source.message.to_ascii_lowercase()),
            Error::Io { source, .. } => source.kind() == io::ErrorKind::OutOfMemory,
            _ => false,
        }
    }
}

/// Words of libtorch and its libraries, in lower case, for memory that the system or a device refused: the
/// allocators of CUDA and of CPUs, C++, oneDNN, cuBLAS and cuDNN.
const SHORTAGES: [&str; 6] = [
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a memory object",
    "status_alloc_failed",
];

/// Returns `true` if a message of libtorch, in lower case, reports a shortage of memory.
fn is_shortage(message: &str) -> bool {
    // oneDNN says so for lack of memory; a primitive that does not exist already fails at its descriptor.
    let primitive = "could not create a primitive";
    let of_onednn = message
        .split(primitive)
        .skip(1)
        .any(|rest| !rest.starts_with(" descriptor"));
    of_onednn || SHORTAGES.iter().any(|words| message.contains(words))
}

/// Extension of results that names the stage in which libtorch failed.
pub trait During<T> {
    /// Sets the stage of an [`Error::Torch`] without one, that is with [`Stage::Compute`].
    ///
    /// # Errors
    /// The original error, with its stage named.
    fn during(self, stage: Stage) -> Result<T>;
}

impl<T> During<T> for Result<T> {
    fn during(self, stage: Stage) -> Result<T> {
        self.map_err(|error| match error {
            Error::Torch {
                stage: Stage::Compute,
                source,
            } => Error::Torch { stage, source },
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
        // The stage nearest to the failure is kept.
        let error = error.during(Stage::Decode).during(Stage::Other("testing")).unwrap_err();
        let Error::Torch { stage, source } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*stage, Stage::Decode);
        assert_eq!(error.to_string(), "libtorch failed while decoding the image");
        assert!(!source.to_string().contains('\n'));
        assert!(source.to_string().contains("invalid for input of size 3"), "{source}");
    }

    #[test]
    fn a_bug_asks_to_be_reported() {
        let error = Error::bug("a run of no images");
        assert!(error.is_bug() && !Error::invalid("batch", "at least 1 image", 0).is_bug());
        assert_eq!(
            error.to_string(),
            "a run of no images: this is a bug in kontext; please report it"
        );
    }

    #[test]
    fn a_received_value_is_shown_printable_and_short() {
        let got = |value: &dyn std::fmt::Display| match Error::invalid("sigmas", "few", value) {
            Error::InvalidArgument { got, .. } => got,
            other => panic!("{other:?}"),
        };
        assert_eq!(got(&"a\0b\u{1b}[31m"), "a\\u{0}b\\u{1b}[31m");
        let list = got(&format!("{:?}", [0.5_f32; 1001]));
        assert!(list.starts_with("[0.5, 0.5") && list.ends_with("0.5]"), "{list}");
        assert_eq!((list.chars().count(), got(&1e308).chars().count()), (200, 200));
    }

    #[test]
    fn every_librarys_words_for_a_shortage_are_recognised() {
        let error = |words: &str| Error::from(TchError::Torch(words.to_owned()));
        for words in [
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
            "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried",
            "std::bad_alloc",
            "could not create a primitive",
            "could not create a memory object",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ] {
            assert!(error(words).is_out_of_memory(), "{words}");
        }
        for words in [
            "could not create a primitive descriptor for a matmul primitive",
            "shape '[2, 2]' is invalid for input of size 3",
        ] {
            assert!(!error(words).is_out_of_memory(), "{words}");
        }
        let mapping = Error::io("model.safetensors")(io::ErrorKind::OutOfMemory.into());
        assert!(mapping.is_out_of_memory());
    }

    #[test]
    fn the_error_stays_small() {
        assert!(std::mem::size_of::<Error>() <= 128);
    }
}
