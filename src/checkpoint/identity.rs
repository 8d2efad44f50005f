//! Digests of model files, independent of the folders' names.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result};
use sha2::{Digest, Sha256};

use super::Checkpoint;

/// Size above which only samples of a file are read; files of equal size that agree in all samples count as equal.
const WHOLE: u64 = 64 << 20;
/// Samples of a larger file, including its beginning and its end.
const SAMPLES: u64 = 64;
/// Bytes of a sample: the header of a weights file fits into a few.
const SAMPLE: u64 = 1 << 20;

impl Checkpoint {
    /// Returns a digest of all files of the model, as [`file_digest`]: of its parts, tokenizers, scheduler and
    /// defaults, and of `more`, such as LoRAs.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read.
    pub fn digest(&self, more: &[PathBuf]) -> Result<String> {
        let parts = [
            &self.transformer,
            &self.vae,
            &self.clip,
            &self.t5,
            &self.clip_tokenizer,
            &self.t5_tokenizer,
        ];
        let defaults = self.folder.join("kontext.json");
        let others = self
            .scheduler
            .iter()
            .chain(Some(&defaults).filter(|path| path.is_file()))
            .chain(more);
        file_digest(parts.into_iter().chain(others))
    }
}

/// Returns a digest of files and of all files in folders, 16 hexadecimal digits: of their names, sizes and
/// contents, but not their folders' paths. Of a file above 64 MiB it takes 64 samples of 1 MiB each.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read.
pub fn file_digest<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<String> {
    let mut hash = Sha256::new();
    for path in paths {
        add(path, &mut hash)?;
    }
    Ok(format!("{:x}", hash.finalize()).chars().take(16).collect())
}

fn add(path: &Path, hash: &mut Sha256) -> Result<()> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
        let entries = entries.map(|entry| Ok(entry?.path()));
        let mut paths = entries
            .collect::<std::io::Result<Vec<PathBuf>>>()
            .map_err(Error::io(path))?;
        paths.sort();
        return paths.iter().try_for_each(|path| add(path, hash));
    }
    add_file(path, hash).map_err(Error::io(path))
}

fn add_file(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
    hash.update(size.to_le_bytes());
    if size <= WHOLE {
        std::io::copy(&mut file, hash)?;
        return Ok(());
    }
    for sample in 0..SAMPLES {
        file.seek(SeekFrom::Start((size - SAMPLE) / (SAMPLES - 1) * sample))?;
        std::io::copy(&mut Read::by_ref(&mut file).take(SAMPLE), hash)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;

    #[test]
    fn every_file_of_a_model_counts_and_its_folder_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        crate::random_model(&model, 7, Layout::Diffusers).unwrap();
        let digest = |folder: &Path| Checkpoint::find(folder).unwrap().digest(&[]).unwrap();
        let before = digest(&model);
        let moved = folder.path().join("moved");
        std::fs::rename(&model, &moved).unwrap();
        assert_eq!(digest(&moved), before);
        for name in [
            "transformer",
            "vae",
            "text_encoder",
            "text_encoder_2",
            "tokenizer",
            "tokenizer_2",
        ] {
            let extra = moved.join(name).join("note.txt");
            std::fs::write(&extra, "changed").unwrap();
            assert_ne!(digest(&moved), before, "{name}");
            std::fs::remove_file(extra).unwrap();
        }
        assert_eq!(digest(&moved), before);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = file_digest([&PathBuf::from("no/such.safetensors")]).unwrap_err();
        assert!(error.to_string().contains("no/such.safetensors"), "{error}");
    }
}
