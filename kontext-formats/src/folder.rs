//! The files of weights that a folder offers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result, printable};

use super::shards::{Index, Shard};

/// File stems under which diffusers and transformers save the weights of a part.
pub(super) const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// Extensions of PyTorch's pickles.
const PICKLES: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

/// The content of a folder, as far as weights are concerned: by names only, nothing is opened but shard
/// indices.
///
/// Hidden files and folders (`._model.safetensors`, `.cache`) are left out, and symbolic links are followed.
///
/// # Example
/// ```
/// use kontext_formats::FolderListing;
/// let folder = tempfile::tempdir().unwrap();
/// for name in ["._ae.sft", "ae.sft", "flux-00001-of-00002.gguf", "flux-00002-of-00002.gguf", "old.ckpt"] {
///     std::fs::write(folder.path().join(name), "").unwrap();
/// }
/// let listing = FolderListing::of(folder.path())?;
/// assert_eq!(listing.weights, ["ae.sft", "flux-00001-of-00002.gguf"].map(|name| folder.path().join(name)));
/// assert_eq!(listing.pickles, [folder.path().join("old.ckpt")]);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FolderListing {
    /// Files that [`Store::open`](crate::Store::open) takes, by name: whole ones (`.safetensors`, `.sft`,
    /// `.gguf`) and, for each set of shards, its index or, without one, its first file.
    pub weights: Vec<PathBuf>,
    /// PyTorch's pickles, by name. They are not read: opening one can run the code in it.
    pub pickles: Vec<PathBuf>,
    /// Folders, by name.
    pub folders: Vec<PathBuf>,
    /// Files of weights that cannot be used, by name, and the reason of each: no permission, a link to a
    /// file that is gone, a missing shard.
    pub unusable: Vec<(PathBuf, String)>,
}

impl FolderListing {
    /// Extensions of files of weights, in lower case; in a file's name the case does not count.
    pub const EXTENSIONS: [&str; 3] = ["safetensors", "sft", "gguf"];

    /// Lists a folder.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn of(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let (mut listing, mut files, mut indices) = (Self::default(), Vec::new(), Vec::new());
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let path = entry.map_err(Error::io(folder))?.path();
            if path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
            {
                continue;
            }
            let (weights, pickle) = (has_extension(&path, &Self::EXTENSIONS), has_extension(&path, &PICKLES));
            match std::fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => listing.folders.push(path),
                Ok(meta) if meta.is_file() && weights => files.push(path),
                Ok(meta) if meta.is_file() && pickle => listing.pickles.push(path),
                Ok(meta) if meta.is_file() && is_index(&path) => indices.push(path),
                Ok(meta) if !meta.is_file() && weights => {
                    listing.unusable.push((path, "a pipe or a device".to_owned()));
                }
                Ok(_) => {}
                Err(error) => {
                    let link = path.is_symlink() && error.kind() == std::io::ErrorKind::NotFound;
                    if link && (weights || is_index(&path)) {
                        listing
                            .unusable
                            .push((path, "a link to a file that is gone".to_owned()));
                    } else if !link {
                        listing.unusable.push((path, error.to_string()));
                    }
                }
            }
        }
        listing.group(files, indices);
        listing.weights.sort();
        listing.pickles.sort();
        listing.folders.sort();
        listing.unusable.sort();
        Ok(listing)
    }

    /// Describes the pickles and the unusable files, for an error about missing weights; their paths are
    /// relative to the folder `root`, if they are in it.
    #[must_use]
    pub fn unread(&self, root: &Path) -> Vec<String> {
        let name = |path: &Path| name_in(root, path);
        let pickle = |path: &PathBuf| {
            format!(
                "{}, a PyTorch pickle (not read, as it can run code: take the model's safetensors)",
                name(path)
            )
        };
        let unusable = |(path, reason): &(PathBuf, String)| format!("{}, which cannot be used ({reason})", name(path));
        let unusable = self.unusable.iter().map(unusable);
        unusable.chain(self.pickles.iter().map(pickle)).collect()
    }

    /// Returns those of the weights under the names that diffusers and transformers give to a part, with any
    /// variant.
    #[must_use]
    pub fn of_a_part(&self) -> Vec<&PathBuf> {
        let named = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let mut stems = STEMS.iter().filter_map(|stem| name.strip_prefix(stem));
            stems.any(|rest| rest.starts_with(['.', '-']))
        };
        self.weights.iter().filter(named).collect()
    }

    /// Adds whole files as they are, and sets of shards by one file each.
    fn group(&mut self, mut files: Vec<PathBuf>, indices: Vec<PathBuf>) {
        files.sort();
        let mut in_sets = BTreeSet::new();
        for index in indices {
            match Index::read(&index) {
                Ok(shards) => {
                    let shards = shards.paths();
                    match shards.iter().find(|shard| !shard.is_file()) {
                        Some(absent) => {
                            self.unusable
                                .push((index, format!("its shard {} is missing", quoted(absent))));
                        }
                        None => self.weights.push(index),
                    }
                    in_sets.extend(shards);
                }
                Err(error) => self.unusable.push((index, error.causes())),
            }
        }
        for file in files {
            if in_sets.contains(&file) {
                continue;
            }
            let Some(shard) = Shard::of(&file) else {
                self.weights.push(file);
                continue;
            };
            let all: Vec<PathBuf> = shard.paths().collect();
            match all.iter().find(|path| !path.is_file()) {
                Some(absent) => {
                    let reason = format!("{} of the same split file is missing", quoted(absent));
                    self.unusable.push((file, reason));
                }
                None => self.weights.push(file),
            }
            in_sets.extend(all);
        }
    }
}

/// Returns a path as seen from a folder that it may be in, in quotes.
pub(super) fn name_in(root: &Path, path: &Path) -> String {
    let path = path.strip_prefix(root).unwrap_or(path);
    format!("`{}`", printable(&path.to_string_lossy()))
}

/// Returns a file's name in quotes.
pub(super) fn quoted(path: &Path) -> String {
    name_in(path.parent().unwrap_or(Path::new("")), path)
}

fn has_extension(path: &Path, known: &[&str]) -> bool {
    path.extension()
        .is_some_and(|extension| known.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// Returns `true` for `model.safetensors.index.json`, also of a variant.
fn is_index(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".json") && name.contains(".safetensors.index.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(write: impl FnOnce(&Path)) -> FolderListing {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let mut listing = FolderListing::of(folder.path()).unwrap();
        let short = |path: &mut PathBuf| *path = path.strip_prefix(folder.path()).unwrap().to_owned();
        let FolderListing {
            weights,
            pickles,
            folders,
            unusable,
        } = &mut listing;
        weights.iter_mut().chain(pickles).chain(folders).for_each(short);
        unusable.iter_mut().for_each(|(path, _)| short(path));
        listing
    }

    fn touch(folder: &Path, names: &[&str]) {
        for name in names {
            std::fs::write(folder.join(name), "").unwrap();
        }
    }

    #[test]
    fn hidden_files_and_folders_are_left_out_and_extensions_have_no_case() {
        let listing = listing(|folder| {
            touch(
                folder,
                &["._a.safetensors", ".b.bin", "a.SafeTensors", "b.sft", "c.gguf", "d.txt"],
            );
            std::fs::create_dir(folder.join(".cache")).unwrap();
            std::fs::create_dir(folder.join("e.safetensors")).unwrap();
        });
        let expected = FolderListing {
            weights: ["a.SafeTensors", "b.sft", "c.gguf"].map(PathBuf::from).to_vec(),
            folders: vec!["e.safetensors".into()],
            ..FolderListing::default()
        };
        assert_eq!(listing, expected);
    }

    #[test]
    fn a_set_of_shards_is_one_entry_and_an_incomplete_one_names_what_is_missing() {
        let index = r#"{"weight_map": {"a": "p.safetensors", "b": "q.safetensors"}}"#;
        let listing = listing(|folder| {
            touch(
                folder,
                &[
                    "p.safetensors",
                    "q.safetensors",
                    "r-00002-of-00002.gguf",
                    "s-00001-of-00001.sft",
                ],
            );
            std::fs::write(folder.join("m.safetensors.index.json"), index).unwrap();
            std::fs::write(folder.join("n.safetensors.index.fp16.json"), index.replace('q', "z")).unwrap();
            std::fs::write(folder.join("o.safetensors.index.json"), "[]").unwrap();
        });
        assert_eq!(
            listing.weights,
            ["m.safetensors.index.json", "s-00001-of-00001.sft"].map(PathBuf::from)
        );
        let reasons: Vec<&str> = listing.unusable.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(reasons.len(), 3);
        assert_eq!(reasons[0], "its shard `z.safetensors` is missing");
        assert!(reasons[1].contains("expected an object"), "{}", reasons[1]);
        assert_eq!(reasons[2], "`r-00001-of-00002.gguf` of the same split file is missing");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed_and_one_to_nothing_is_named() {
        let listing = listing(|folder| {
            touch(folder, &["blob"]);
            std::os::unix::fs::symlink("blob", folder.join("a.safetensors")).unwrap();
            std::os::unix::fs::symlink("gone", folder.join("b.safetensors")).unwrap();
            std::os::unix::fs::symlink("gone", folder.join("readme.txt")).unwrap();
        });
        assert_eq!(listing.weights, [PathBuf::from("a.safetensors")]);
        let gone = "`b.safetensors`, which cannot be used (a link to a file that is gone)";
        assert_eq!(listing.unread(Path::new("")), [gone]);
    }
}
