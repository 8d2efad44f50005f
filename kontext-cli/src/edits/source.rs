//! The images or requests of a run.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::EditsArgs;

/// The source of many edits.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Source {
    /// The images of a folder.
    Folder(PathBuf),
    /// The images whose paths match a pattern, with `*`, `?`, `[…]` and `**`.
    Pattern(String),
    /// The requests of a manifest.
    Manifest(PathBuf),
}

impl Source {
    /// Returns the source that the options name; `None` for one edit of image files.
    ///
    /// # Errors
    /// If a folder or a pattern is given next to other images.
    pub fn of(images: &[PathBuf], args: &EditsArgs) -> anyhow::Result<Option<Self>> {
        if let Some(manifest) = &args.manifest {
            return Ok(Some(Self::Manifest(manifest.clone())));
        }
        let many = images.iter().find(|path| path.is_dir() || is_pattern(path));
        match (many, images) {
            (None, _) => Ok(None),
            (Some(path), [_]) if path.is_dir() => Ok(Some(Self::Folder(path.clone()))),
            (Some(path), [_]) => {
                let pattern = path.to_str().context("the pattern of --image is not UTF-8")?;
                Ok(Some(Self::Pattern(pattern.to_owned())))
            }
            (Some(path), _) => bail!(
                "--image {} names several images, and further ones are given; name it only, and references of all by \
                 --reference",
                path.display()
            ),
        }
    }
}

/// Returns `true` for a path that no file has and that has a wildcard.
fn is_pattern(path: &Path) -> bool {
    let wildcard = |byte: &u8| b"*?[".contains(byte);
    path.as_os_str().as_encoded_bytes().iter().any(wildcard) && !path.exists()
}
