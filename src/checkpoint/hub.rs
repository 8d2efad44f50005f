//! The cache of the Hugging Face hub: `models--OWNER--NAME/{refs,snapshots}`.

use std::path::{Path, PathBuf};

use kontext_core::{Error, Result};
use kontext_formats::FolderListing;

/// Returns the folder's snapshot, if it is a model in the hub's cache: the one that `refs/main` names, or the only one.
/// Other folders are returned as they are.
pub(super) fn snapshot(folder: &Path) -> Result<PathBuf> {
    let snapshots = folder.join("snapshots");
    let model = folder.join("refs").is_dir() || is_model(folder);
    if !model || !snapshots.is_dir() {
        return Ok(folder.to_owned());
    }
    let revision = std::fs::read_to_string(folder.join("refs").join("main")).unwrap_or_default();
    let revision = Path::new(revision.trim());
    // A plain name; anything else could lead out of the cache.
    if revision.file_name() == Some(revision.as_os_str()) && snapshots.join(revision).is_dir() {
        return Ok(snapshots.join(revision));
    }
    let all = FolderListing::of(&snapshots)?.folders;
    match all.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Error::config(
            folder,
            "it is the hub's cache of a model without a snapshot; fetch the model again",
        )),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            let reason = format!(
                "it is the hub's cache of a model, and its `refs/main` names none of its snapshots; name one: {}",
                names.join(", ")
            );
            Err(Error::config(folder, reason))
        }
    }
}

/// Returns `true` for the name of a model in the hub's cache.
pub(super) fn is_model(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b"models--")
}
