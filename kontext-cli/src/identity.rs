//! Checksums of files, as other programs print them.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::images::entries;

/// Returns the SHA-256 of a file's content, in hexadecimal digits as `sha256sum` prints it.
///
/// # Errors
/// If the file cannot be read.
pub fn content_sha256(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    add(path, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
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
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        add(&file, &mut hash)?;
    }
    Ok(format!("sha256 {:x}", hash.finalize()))
}

fn add(file: &Path, hash: &mut Sha256) -> anyhow::Result<()> {
    let message = || format!("cannot read {}", file.display());
    std::io::copy(&mut File::open(file).with_context(message)?, hash).with_context(message)?;
    Ok(())
}
