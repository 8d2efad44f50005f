//! Digests of model files, independent of the folders' names.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context;
use kontext::Checkpoint;
use sha2::{Digest, Sha256};

use crate::images::entries;

/// Size above which only samples of a file are read; files of equal size that agree in all samples count as equal.
const WHOLE: u64 = 64 << 20;
/// Samples of a larger file, including its beginning and its end.
const SAMPLES: u64 = 64;
/// Bytes of a sample: the header of a weights file fits into a few.
const SAMPLE: u64 = 1 << 20;

/// Returns a digest of all files of a model and of `more`, such as LoRAs.
///
/// # Errors
/// If a file cannot be read.
pub fn of_model(checkpoint: &Checkpoint, more: &[PathBuf]) -> anyhow::Result<String> {
    let parts = [
        &checkpoint.transformer,
        &checkpoint.vae,
        &checkpoint.clip,
        &checkpoint.t5,
        &checkpoint.clip_tokenizer,
        &checkpoint.t5_tokenizer,
    ];
    let defaults = checkpoint.folder.join("kontext.json");
    let others = checkpoint
        .scheduler
        .iter()
        .chain(Some(&defaults).filter(|path| path.is_file()))
        .chain(more);
    of_files(parts.into_iter().chain(others))
}

/// Returns a digest of files and of all files in folders: of their names, sizes and contents, but not their folders'
/// paths.
///
/// # Errors
/// If a file cannot be read.
pub fn of_files<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    for path in paths {
        add(path, &mut hash).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(format!("{:x}", hash.finalize()).chars().take(16).collect())
}

/// Returns the SHA-256 of a file, or of the files directly in a folder and their names.
///
/// # Errors
/// If a file cannot be read.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut files = if path.is_dir() {
        entries(path)?
    } else {
        vec![path.to_owned()]
    };
    files.retain(|file| file.is_file());
    let mut hash = Sha256::new();
    for file in files {
        let message = || format!("cannot read {}", file.display());
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        std::io::copy(&mut File::open(&file).with_context(message)?, &mut hash).with_context(message)?;
    }
    Ok(format!("sha256 {:x}", hash.finalize()))
}

fn add(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
        let mut paths = entries.collect::<std::io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        return paths.iter().try_for_each(|path| add(path, hash));
    }
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
