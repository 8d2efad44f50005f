//! Edits of the images of a folder, or of those that match a pattern.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use kontext::Request;

use super::job::{Job, Wanted};
use super::names::stems;
use crate::images;

/// Images below a folder.
#[derive(Debug)]
pub(super) struct Found {
    /// The folder.
    pub(super) base: PathBuf,
    /// Paths within it, sorted.
    pub(super) files: Vec<PathBuf>,
}

impl Found {
    /// Returns the images of a folder, without those of the folders in it.
    pub(super) fn in_folder(folder: &Path) -> anyhow::Result<Self> {
        Self::new(folder.to_owned(), images::of(folder)?, &folder.display().to_string())
    }

    /// Returns the images whose paths match a pattern, without those in the folder of the results.
    pub(super) fn by_pattern(pattern: &str, out: &Path) -> anyhow::Result<Self> {
        let paths = glob::glob(pattern).with_context(|| format!("--image {pattern:?} is no pattern of names"))?;
        let paths = paths
            .collect::<Result<Vec<_>, _>>()
            .context("cannot read a folder of --image")?;
        let out = out.canonicalize().ok();
        let is_result = |path: &Path| match (&out, path.canonicalize()) {
            (Some(out), Ok(path)) => path.starts_with(out),
            _ => false,
        };
        let chosen = |path: &PathBuf| images::is_image(path) && path.is_file() && !is_result(path);
        let base: PathBuf = Path::new(pattern)
            .components()
            .take_while(|part| !matches!(part, Component::Normal(name) if is_wild(name.as_encoded_bytes())))
            .collect();
        Self::new(base, paths.into_iter().filter(chosen).collect(), pattern)
    }

    fn new(base: PathBuf, paths: Vec<PathBuf>, named: &str) -> anyhow::Result<Self> {
        if paths.is_empty() {
            bail!("no images in {named}: expected .png, .jpg or .webp files; name another folder or pattern");
        }
        let mut files: Vec<PathBuf> = paths
            .into_iter()
            .map(|path| path.strip_prefix(&base).map_or(path.clone(), Path::to_owned))
            .collect();
        files.sort();
        Ok(Self { base, files })
    }

    /// Returns the edits of the images by one request.
    pub(super) fn jobs(&self, request: &Request, references: &[PathBuf]) -> Vec<Job> {
        let job = |path: &PathBuf| {
            let file = self.base.join(path);
            Job {
                // The same on all systems.
                key: path
                    .iter()
                    .map(|part| part.to_string_lossy())
                    .collect::<Vec<_>>()
                    .join("/"),
                line: None,
                images: std::iter::once(&file).chain(references).cloned().collect(),
                file,
                request: request.clone(),
                wanted: Wanted::First(stems(path)),
                names: Vec::new(),
                shape: String::new(),
            }
        };
        self.files.iter().map(job).collect()
    }
}

fn is_wild(name: &[u8]) -> bool {
    name.iter().any(|byte| b"*?[".contains(byte))
}
