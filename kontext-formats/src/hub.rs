//! The cache of the Hugging Face hub: `models--OWNER--NAME/{refs,snapshots}`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use kontext_core::{CheckpointError, Error, Result, printable};

use super::FolderListing;
use super::folder::name_in;

/// Returns the folder's snapshot, if it is a repository in the hub's cache (`models--OWNER--NAME`): the one that
/// `refs/main` names or, in a cache without that file, the only one. Other folders are returned as they are.
///
/// # Errors
/// [`Error::Checkpoint`] if `refs/main` names a snapshot that is not there, or is missing and there are several or
/// none; [`Error::Io`] if the cache cannot be read.
///
/// # Example
/// ```
/// let cache = tempfile::tempdir().unwrap();
/// let snapshot = cache.path().join("snapshots").join("0a1b");
/// for folder in [cache.path().join("refs"), snapshot.clone()] {
///     std::fs::create_dir_all(folder).unwrap();
/// }
/// std::fs::write(cache.path().join("refs/main"), "0a1b").unwrap();
/// assert_eq!(kontext_formats::hub_snapshot(cache.path())?, snapshot);
/// assert_eq!(kontext_formats::hub_snapshot(&snapshot)?, snapshot);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn hub_snapshot(folder: impl AsRef<Path>) -> Result<PathBuf> {
    let folder = folder.as_ref();
    let snapshots = folder.join("snapshots");
    let cache = folder.join("refs").is_dir() || is_hub_cache(folder);
    if !cache || !snapshots.is_dir() {
        return Ok(folder.to_owned());
    }
    let all = FolderListing::of(&snapshots)?.folders;
    let main = folder.join("refs").join("main");
    let looked = match std::fs::read_to_string(&main) {
        Ok(revision) => {
            let revision = revision.trim();
            // A plain name; anything else could lead out of the cache.
            let plain = Path::new(revision).file_name() == Some(revision.as_ref());
            let path = snapshots.join(revision);
            if plain && path.is_dir() {
                return Ok(path);
            }
            format!("`{}`, which its `refs/main` names", printable(revision))
        }
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&main)(error)),
        Err(_) => match <[PathBuf; 1]>::try_from(all.clone()) {
            Ok([only]) => return Ok(only),
            Err(_) => "`refs/main`, which names it, or the only one".to_owned(),
        },
    };
    Err(Error::checkpoint(folder)(CheckpointError::MissingPart {
        part: "snapshot of the hub's cache",
        looked,
        found: all.iter().map(|path| name_in(folder, path)).collect(),
    }))
}

/// Returns `true` for the name of a repository of models in the hub's cache.
#[must_use]
pub fn is_hub_cache(folder: impl AsRef<Path>) -> bool {
    let name = folder.as_ref().file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b"models--")
}
