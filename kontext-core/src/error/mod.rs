//! The error type shared by all kontext crates.

mod constructors;
mod during;
mod remedy;
mod torch;

use std::io;
use std::path::{Path, PathBuf};

pub use self::during::During;
pub use self::torch::TorchError;
use crate::checkpoint_error::text;
use crate::{CheckpointError, Stage, printable};

/// A result whose error defaults to [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of the kontext crates.
///
/// The variants by the person who can act:
/// - the caller, by other arguments: [`Error::InvalidArgument`], [`Error::Shape`];
/// - the owner of the files: [`Error::Checkpoint`], [`Error::Tokenizer`], [`Error::Io`], [`Error::Image`];
/// - the caller, by smaller settings, or the owner of the machine: [`Error::Device`], [`Error::Memory`],
///   [`Error::Allocation`], [`Error::Torch`], [`Error::Thread`];
/// - the author of the weights or of the recipe: [`Error::NotFinite`], [`Error::Diverged`], [`Error::Collapsed`];
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
    #[error("cannot load {}", shown(path))]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: CheckpointError,
    },
    /// A tokenizer whose files cannot be used; their owner can replace them.
    #[error("cannot use the tokenizer {}: {}", shown(path), text(reason))]
    Tokenizer {
        /// The tokenizer's file or folder.
        path: PathBuf,
        /// The problem and its remedy.
        reason: String,
    },
    /// A file or folder to which the machine refused access; its owner can grant it or free some space.
    #[error("cannot access {}", shown(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error and the remedy.
        #[source]
        source: io::Error,
    },
    /// An image that cannot be decoded or encoded; its owner can replace it.
    #[error("cannot use the image{}: {}", after_space(path), text(reason))]
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
    /// A training against a critic that has failed, by a sign that lasted; the recipe's author can change the
    /// setting that the remedy names and begin in another folder.
    #[error("training step {step}: {sign}; {remedy}")]
    Collapsed {
        /// Steps done.
        step: u64,
        /// The sign, as "the critic ranks every pair right (accuracy 1.000 over 300 steps)".
        sign: String,
        /// The remedy.
        remedy: String,
    },
    /// A thread that could not start, for which the machine's owner can allow more processes or memory, or that
    /// panicked, of which only the developers can find the reason.
    #[error("a thread failed: {reason}")]
    Thread {
        /// The system's error and the remedy, or the message of the panic.
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
        format!(" {}", shown(path))
    }
}

/// Returns a path in printable characters: the name of a fetched file may hold any.
fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

impl Error {
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
            Error::Torch { source, .. } => source.is_shortage(),
            Error::Io { source, .. } => source.kind() == io::ErrorKind::OutOfMemory,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_refused_map_of_a_file_is_a_shortage() {
        let mapping = Error::io("model.safetensors")(io::ErrorKind::OutOfMemory.into());
        assert!(mapping.is_out_of_memory());
    }

    #[test]
    fn paths_and_reasons_are_shown_printable() {
        let (path, reason) = (PathBuf::from("a\u{1b}[2J\nb"), "c\u{202e}\nd\r".to_owned());
        let errors = [
            Error::io(&path)(io::ErrorKind::NotFound.into()),
            Error::config(&path, &reason),
            Error::Tokenizer {
                path: path.clone(),
                reason: reason.clone(),
            },
            Error::Image { path, reason },
        ];
        for error in errors {
            let cause = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
            let all = format!("{error}; {cause}");
            assert!(all.contains("a\\u{1b}[2J\\nb"), "{all}");
            assert!(
                all.contains("c\\u{202e}\nd\\r") || matches!(error, Error::Io { .. }),
                "{all}"
            );
        }
    }

    #[test]
    fn the_error_stays_small() {
        assert!(std::mem::size_of::<Error>() <= 128);
    }
}
