//! The pictures of a folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kontext::crates::kontext_core::picture;
use kontext::image::RgbImage;

/// Pictures of a folder at the sizes that are asked for, each read once.
pub struct Pictures {
    folder: PathBuf,
    open: BTreeMap<(PathBuf, u32, u32), RgbImage>,
}

impl Pictures {
    pub fn of(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            open: BTreeMap::new(),
        }
    }

    pub fn get(&mut self, path: &Path, width: u32, height: u32) -> anyhow::Result<RgbImage> {
        let key = (path.to_owned(), width, height);
        if let Some(picture) = self.open.get(&key) {
            return Ok(picture.clone());
        }
        let picture = picture::resize(&kontext::open(self.folder.join(path))?, width, height)?;
        Ok(self.open.entry(key).or_insert(picture).clone())
    }
}

/// What a folder holds, in the order of the names.
pub fn listed(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let of = || format!("cannot read the folder {}", folder.display());
    let entries = std::fs::read_dir(folder).with_context(of)?;
    let mut paths = entries
        .map(|e| Ok(e?.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(of)?;
    paths.sort();
    Ok(paths)
}

/// The picture files of a folder that `open` can use; the others are named and counted on stderr.
pub fn usable(folder: &Path, open: impl Fn(&Path) -> anyhow::Result<RgbImage>) -> anyhow::Result<Vec<PathBuf>> {
    const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
    let is_picture = |path: &PathBuf| {
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
    };
    let mut pictures = listed(folder)?;
    pictures.retain(is_picture);
    let found = pictures.len();
    pictures.retain(|path| {
        let opened = open(path);
        if let Err(error) = &opened {
            eprintln!("skipped: {error:#}");
        }
        opened.is_ok()
    });
    match (pictures.len(), found) {
        (0, 0) => bail!(
            "no pictures in {}: expected .png, .jpg or .webp files; name another folder",
            folder.display()
        ),
        (0, _) => bail!(
            "none of the {found} pictures in {} can be used; name another folder",
            folder.display()
        ),
        (kept, _) if kept < found => eprintln!("{} of {found} pictures cannot be used and are left out", found - kept),
        _ => {}
    }
    Ok(pictures)
}
