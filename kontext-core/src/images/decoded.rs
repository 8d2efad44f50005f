//! Results and limits of the formats' decoders.

use std::io;
use std::path::Path;

use image::ImageError;

use super::color::Profile;
use super::orientation::Orientation;
use super::samples::Samples;
use crate::Error;

/// Most bytes of a profile, of EXIF, and of text that a decoder unpacks. The largest printing profiles have four
/// million.
pub(super) const METADATA: usize = 1 << 26;

/// Size and orientation of an image, by the headers of its file.
pub(super) struct Header {
    pub width: u32,
    pub height: u32,
    pub orientation: Orientation,
}

/// A decoded file.
pub(super) struct Decoded {
    pub profile: Option<Profile>,
    pub orientation: Orientation,
    pub samples: Samples,
}

/// The largest number of pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct PixelLimit(pub u64);

impl PixelLimit {
    /// Checks a size, before memory is taken for it.
    pub(super) fn check(self, width: u32, height: u32) -> Result<(), Failure> {
        let Self(most) = self;
        if u64::from(width) * u64::from(height) <= most {
            return Ok(());
        }
        Err(Failure::Reason(format!(
            "expected at most {most} pixels, got {width}x{height}; make it smaller"
        )))
    }
}

/// A reason why a file is not decoded, without the file's path.
#[derive(Debug)]
pub(super) enum Failure {
    Decoder(ImageError),
    Reason(String),
    Other(Error),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Decoder(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    /// Returns the error of the file at `path`.
    pub(super) fn at(self, path: &Path) -> Error {
        match self {
            Self::Decoder(error) => Error::image(path)(error),
            Self::Reason(reason) => Error::Image {
                path: path.to_owned(),
                reason,
            },
            Self::Other(error) => error,
        }
    }
}

/// Returns the failure of a file that cannot be read on: it is cut, or the system refuses to read it.
pub(super) fn cut(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::OutOfMemory {
        let mb = (METADATA as u128).div_ceil(1_000_000);
        let purpose = "the headers of an image";
        return Error::Allocation { purpose, mb }.into();
    }
    ImageError::IoError(error).into()
}

/// Returns the failure of a file with which a decoder panics.
pub(super) fn panicked(panic: &str) -> Failure {
    let remedy = "the file is damaged, fetch or save it again";
    Failure::Reason(format!("the decoder failed ({panic}); {remedy}"))
}

/// Returns the failure of a file that is cut.
pub(super) fn ends_early() -> Failure {
    Failure::Reason("it ends early; the file is damaged, fetch or save it again".into())
}
