//! The file of a LoRA in its folder.

use std::path::{Path, PathBuf};

use kontext_core::{CheckpointError, Error, Result, printable};
use kontext_formats::{FolderListing, hub_snapshot};
use kontext_nn::Weights;

use crate::key;
use crate::table::Table;
use crate::{Lora, LoraDefaults};

/// File names under which diffusers and PEFT save a LoRA in a folder of its own.
const STANDARD: [&str; 2] = ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"];

impl Lora {
    /// Finds the file that [`Lora::open`] reads. A file is itself. In a folder it is
    /// `pytorch_lora_weights.safetensors` (diffusers) or `adapter_model.safetensors` (PEFT), otherwise the
    /// only file of weights that [`FolderListing`] has. A folder of the hub's cache is its snapshot
    /// ([`hub_snapshot`]).
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read; [`Error::Checkpoint`] if it has no such file or several,
    /// which are named, and those of [`hub_snapshot`].
    pub fn find(path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Ok(path.to_owned());
        }
        let path = &hub_snapshot(path)?;
        let listing = FolderListing::of(path)?;
        let standard = listing.weights.iter().filter(|path| is_standard(path));
        let (standard, all): (Vec<&PathBuf>, Vec<&PathBuf>) = (standard.collect(), listing.weights.iter().collect());
        let files = if standard.is_empty() { all } else { standard };
        let source = match files.as_slice() {
            [file] => return Ok((*file).clone()),
            [] => CheckpointError::MissingPart {
                part: "LoRA",
                looked: format!("{}, or one file of weights", STANDARD.join(", ")),
                found: listing.unread(path),
            },
            several => {
                let names = several.iter().filter_map(|file| file.file_name());
                CheckpointError::Ambiguous {
                    part: "the LoRA".to_owned(),
                    found: names
                        .map(|name| format!("`{}`", printable(&name.to_string_lossy())))
                        .collect(),
                    remedy: "name one of them".to_owned(),
                }
            }
        };
        Err(Error::checkpoint(path)(source))
    }

    /// Reads the settings that a LoRA's file asks for in its metadata; only its header is read.
    ///
    /// # Errors
    /// Those of [`Lora::find`], [`Error::Io`], and [`Error::Checkpoint`] for a damaged file or a wrong value.
    pub fn defaults_in(path: impl AsRef<Path>) -> Result<LoraDefaults> {
        let path = Self::find(path)?;
        LoraDefaults::of_file(&path, &Weights::open(&path)?.store().metadata())
    }

    /// Returns a name for the LoRA at this path: that of the file without its extension, or of the folder,
    /// which is also the name of a file that diffusers or PEFT named (`ink/pytorch_lora_weights.safetensors`
    /// is `ink`).
    ///
    /// # Example
    /// ```
    /// use kontext_lora::Lora;
    /// for path in ["loras/ink.safetensors", "loras/ink", "ink/pytorch_lora_weights.safetensors"] {
    ///     assert_eq!(Lora::name_of(path), "ink");
    /// }
    /// ```
    #[must_use]
    pub fn name_of(path: impl AsRef<Path>) -> String {
        let path = path.as_ref();
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let own = name(path).unwrap_or_else(|| path.display().to_string());
        let folder = path.parent().and_then(name);
        match (folder, own.rsplit_once('.')) {
            (Some(folder), _) if is_standard(path) => folder,
            (_, Some((stem, end)))
                if !stem.is_empty() && FolderListing::EXTENSIONS.contains(&end.to_lowercase().as_str()) =>
            {
                stem.to_owned()
            }
            _ => own,
        }
    }

    /// Returns `true` if the folder is one of a LoRA: it has the file of [`Lora::find`], and most names in it
    /// are those of a LoRA's tensors. Only the header is read.
    #[must_use]
    pub fn found_in(folder: impl AsRef<Path>) -> bool {
        let folder = folder.as_ref();
        let names = || -> Result<Vec<String>> { Ok(Weights::open(Self::find(folder)?)?.names()) };
        let (Ok(names), Ok(table)) = (names(), Table::new()) else {
            return false;
        };
        let known = names.iter().filter(|name| key::read(name, &table, false).is_ok());
        folder.is_dir() && 2 * known.count() > names.len()
    }
}

fn is_standard(path: &Path) -> bool {
    STANDARD.iter().any(|name| path.file_name() == Some(name.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let file = Lora::find(folder.path())?;
        Ok(file.strip_prefix(folder.path()).unwrap().display().to_string())
    }

    #[test]
    fn the_file_of_a_lora_is_found_in_its_folder() {
        for (names, file) in [
            (
                &["pytorch_lora_weights.safetensors"][..],
                "pytorch_lora_weights.safetensors",
            ),
            (
                &[
                    "adapter_model.safetensors",
                    "adapter_config.json",
                    "optimizer.safetensors",
                ],
                "adapter_model.safetensors",
            ),
            (
                &["._ink.safetensors", "ink.safetensors", "README.md", "ink.png"],
                "ink.safetensors",
            ),
            (&["ink.SFT", "ink.pt"], "ink.SFT"),
        ] {
            assert_eq!(found(names).unwrap(), file, "{names:?}");
        }
        assert_eq!(Lora::find("no/such.file").unwrap(), Path::new("no/such.file"));
    }

    #[test]
    fn a_lora_in_the_cache_of_the_hub_is_that_of_its_snapshot() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--strangers--ink");
        let file = folder.join("snapshots/0a1b/ink.safetensors");
        for path in [
            folder.join("refs"),
            folder.join("snapshots/0a1b"),
            folder.join("snapshots/ffff"),
        ] {
            kontext_core::create_folder(path).unwrap();
        }
        std::fs::write(&file, "").unwrap();
        std::fs::write(folder.join("refs/main"), "0a1b").unwrap();
        assert_eq!(Lora::find(&folder).unwrap(), file);
        // The snapshot that was fetched last may be one that is not there yet.
        std::fs::write(folder.join("refs/main"), "2c3d").unwrap();
        let cause = Lora::find(&folder).unwrap_err().causes();
        assert!(
            cause.contains("looked for `2c3d`, which its `refs/main` names"),
            "{cause}"
        );
    }

    #[test]
    fn the_name_of_a_lora_is_that_of_its_file_or_of_its_folder() {
        for (path, name) in [
            ("loras/ink.safetensors", "ink"),
            ("ink-v1.5.SFT", "ink-v1.5"),
            ("loras/ink-v1.5", "ink-v1.5"),
            ("loras/ink-v1.5/", "ink-v1.5"),
            ("ink/pytorch_lora_weights.safetensors", "ink"),
            ("ink/adapter_model.safetensors", "ink"),
            ("adapter_model.safetensors", "adapter_model"),
            (".safetensors", ".safetensors"),
            ("..", ".."),
        ] {
            assert_eq!(Lora::name_of(path), name, "{path}");
        }
    }

    #[test]
    fn a_folder_without_one_file_of_a_lora_is_refused_with_what_lies_in_it() {
        let refused = |names: &[&str]| {
            let error = found(names).unwrap_err();
            std::error::Error::source(&error).unwrap().to_string()
        };
        assert_eq!(
            refused(&["._ink.safetensors"]),
            "no LoRA found; looked for pytorch_lora_weights.safetensors, adapter_model.safetensors, or one file of \
             weights; fetch what is missing or name another path"
        );
        let several = refused(&["ink-2.safetensors", "ink-1.safetensors"]);
        assert!(
            several.ends_with("two files for the LoRA: `ink-1.safetensors` and `ink-2.safetensors`; name one of them"),
            "{several}"
        );
        let both = refused(&[STANDARD[0], STANDARD[1], "ink.safetensors"]);
        assert!(
            both.contains("`adapter_model.safetensors` and `pytorch_lora_weights.safetensors`; name"),
            "{both}"
        );
        let pickle = refused(&["pytorch_lora_weights.bin"]);
        assert!(
            pickle.contains("`pytorch_lora_weights.bin`, a PyTorch pickle"),
            "{pickle}"
        );
    }
}
