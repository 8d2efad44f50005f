//! Errors made of arguments, and of the errors of other libraries.

use std::io;
use std::path::PathBuf;

use image::ImageError;
use tch::TchError;

use super::{Error, TorchError, remedy};
use crate::{CheckpointError, Stage, printable, shortened};

/// Characters of a received value that a message shows.
const SHOWN: usize = 200;

impl From<TchError> for Error {
    fn from(source: TchError) -> Self {
        Error::Torch {
            stage: Stage::Compute,
            source: TorchError::new(source),
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
            source: remedy::of_io(source),
        }
    }

    /// Attaches a path to an image error; an I/O error inside it becomes [`Error::Io`].
    pub fn image(path: impl Into<PathBuf>) -> impl FnOnce(ImageError) -> Self {
        let path = path.into();
        move |source| match source {
            // Decoders report a truncated file in this way.
            ImageError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => Error::io(path)(source),
            source => Error::Image {
                reason: remedy::of_image(&source),
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
