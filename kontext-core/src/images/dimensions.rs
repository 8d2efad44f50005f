//! Size of an image file by its headers, without its pixels.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::decoded::{Failure, Header, panicked};
use super::format::{Format, HEAD};
use super::open::append;
use super::{jpeg, png, webp};
use crate::{Error, Result, contain};

/// Returns width and height of the image that [`open`](super::open) returns for this file: its format is known by
/// its content, and its orientation applied. Reads little more than the headers, so a file whose pixels are
/// damaged has dimensions, too. Limits are not checked.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, as a pipe, in which one cannot go back; [`Error::Image`] if it is not a
/// PNG, JPEG or WebP, or its headers are damaged; [`Error::Allocation`] if memory is short.
///
/// # Example
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// # let photo = folder.path().join("photo.png");
/// # image::RgbImage::new(64, 48).save(&photo).unwrap();
/// assert_eq!(kontext_core::images::dimensions(&photo)?, (64, 48));
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn dimensions(path: impl AsRef<Path>) -> Result<(u32, u32)> {
    let path = path.as_ref();
    let file = File::open(path).map_err(Error::io(path))?;
    let header = contain(|| read(BufReader::new(file), path));
    let Header {
        width,
        height,
        orientation,
    } = header.unwrap_or_else(|panic| Err(panicked(&panic).at(path)))?;
    Ok(if orientation.exchanges_sides() {
        (height, width)
    } else {
        (width, height)
    })
}

fn read(mut file: impl BufRead + Seek, path: &Path) -> Result<Header> {
    let mut head = Vec::new();
    append(&mut head, file.by_ref().take(HEAD as u64), path)?;
    let format = Format::of(&head).map_err(|reason| Failure::Reason(reason).at(path))?;
    file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
    let header = match format {
        Format::Png => png::header(file),
        Format::Jpeg => jpeg::header(file),
        Format::WebP => webp::header(file),
    };
    header.map_err(|failure| failure.at(path))
}
