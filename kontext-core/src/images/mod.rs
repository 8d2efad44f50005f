//! Images: 8-bit RGB files and buffers to tensors and back.

mod alpha;
mod color;
mod decoded;
mod dimensions;
mod exif;
mod format;
mod jpeg;
mod jpeg_bits;
mod jpeg_scans;
mod jpeg_segments;
mod open;
mod orientation;
mod png;
mod samples;
mod tensor;
mod webp;

use std::path::Path;

use image::{GrayImage, RgbImage};

pub use alpha::Alpha;
pub use dimensions::dimensions;
pub use open::{EmbeddedProfile, OpenOptions};
pub use samples::flatten;
pub use tensor::{Rounding, from_levels, from_tensor, to_levels, to_tensor};

use crate::Result;
pub use crate::resize::{resize, resize_box, resize_bytes};

/// Version of decoding and resizing: it is raised whenever a file gives other pixels than before, for caches of what
/// was made of images.
pub const DECODING: u32 = 1;

/// Opens an image file with the default [`OpenOptions`].
///
/// # Errors
/// Those of [`OpenOptions::open`].
pub fn open(path: impl AsRef<Path>) -> Result<RgbImage> {
    OpenOptions::new().open(path)
}

/// Decodes an image file in memory with the default [`OpenOptions`].
///
/// # Errors
/// Those of [`OpenOptions::decode`].
pub fn from_bytes(bytes: &[u8]) -> Result<RgbImage> {
    OpenOptions::new().decode(bytes)
}

/// Opens a mask with the default [`OpenOptions`].
///
/// # Errors
/// Those of [`OpenOptions::open_mask`].
pub fn open_mask(path: impl AsRef<Path>) -> Result<GrayImage> {
    OpenOptions::new().open_mask(path)
}
