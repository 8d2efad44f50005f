//! Image files of a folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kontext::image::RgbImage;
use kontext_core::images;

use crate::program::note;

/// Extensions of the formats that can be read.
const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Images of a folder at the sizes requested, each decoded once.
#[derive(Debug)]
pub struct ImageCache {
    folder: PathBuf,
    images: BTreeMap<(PathBuf, u32, u32), RgbImage>,
}

impl ImageCache {
    /// Returns an empty cache of the images in `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            images: BTreeMap::new(),
        }
    }

    /// Returns the image at `path` within the folder, resized to `width` x `height`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn get(&mut self, path: &Path, width: u32, height: u32) -> anyhow::Result<RgbImage> {
        let key = (path.to_owned(), width, height);
        if let Some(image) = self.images.get(&key) {
            return Ok(image.clone());
        }
        let image = images::resize(&kontext::open_image(self.folder.join(path))?, width, height)?;
        Ok(self.images.entry(key).or_insert(image).clone())
    }
}

/// Returns the paths of a folder's entries, sorted by name.
///
/// # Errors
/// If the folder cannot be read.
pub fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let message = || format!("cannot read the folder {}", folder.display());
    let entries = std::fs::read_dir(folder).with_context(message)?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(message)?;
    paths.sort();
    Ok(paths)
}

/// Returns the image files of a folder and of the folders below it, sorted.
///
/// # Errors
/// If a folder cannot be read.
pub fn below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() {
            images.extend(below(&path)?);
        } else if is_image(&path) {
            images.push(path);
        }
    }
    images.sort();
    Ok(images)
}

/// Returns the image files of a folder, sorted by name.
///
/// # Errors
/// If the folder cannot be read.
pub fn of(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut images = entries(folder)?;
    images.retain(|path| is_image(path));
    Ok(images)
}

/// Returns the image files of a folder for which `open` succeeds; names and counts the others on stderr.
///
/// # Errors
/// If the folder cannot be read or no image remains.
pub fn usable(folder: &Path, open: impl Fn(&Path) -> anyhow::Result<RgbImage>) -> anyhow::Result<Vec<PathBuf>> {
    let mut images = of(folder)?;
    let found = images.len();
    images.retain(|path| {
        let opened = open(path);
        if let Err(error) = &opened {
            note(format_args!("skipped: {error:#}"));
        }
        opened.is_ok()
    });
    match (images.len(), found) {
        (0, 0) => bail!(
            "no images in {}: expected .png, .jpg or .webp files; name another folder",
            folder.display()
        ),
        (0, _) => bail!(
            "none of the {found} images in {} can be used; name another folder",
            folder.display()
        ),
        (kept, _) if kept < found => note(format_args!(
            "{} of {found} images cannot be used and are left out",
            found - kept
        )),
        _ => {}
    }
    Ok(images)
}

/// Returns `true` if the extension is that of a format that can be read, and the file is not hidden, as what macOS
/// keeps of a file (`._cat.jpg`).
pub(crate) fn is_image(path: &Path) -> bool {
    let is_hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().filter(|_| !is_hidden);
    extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_their_extension_in_any_case_and_hidden_ones_are_none() {
        let images = [("a.png", true), ("a.JPeG", true), (".folder/a.png", true)];
        let others = [("png", false), ("a.gif", false), ("._a.jpg", false), (".a.png", false)];
        for (name, expected) in images.into_iter().chain(others) {
            assert_eq!(is_image(Path::new(name)), expected, "{name}");
        }
    }
}
