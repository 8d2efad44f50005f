//! The folder of the results, open for one shard.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use kontext::{Error, Result};
use kontext_bench::kontextbench::Shard;
use kontext_core::{create_folder, pattern, sync_entry, write_file};

use super::journal::{Journal, is_free};
use super::record::Record;
use crate::images::entries;

/// A folder of results with the journal of a shard, and a hidden folder in it for files that are not whole yet. The
/// latter is removed at the end; that of a killed program is by the shard's next run, or by one of all shards.
#[derive(Debug)]
pub(super) struct Workspace {
    folder: PathBuf,
    staging: PathBuf,
    journal: Journal,
}

impl Workspace {
    /// Opens the folder, created if absent.
    ///
    /// # Errors
    /// If another program works on the shard, or the folder cannot be written.
    pub(super) fn open(folder: &Path, shard: Shard) -> anyhow::Result<Self> {
        crate::create_folder(folder)?;
        let suffix = suffix(shard);
        let journal = Journal::open(folder.join(format!("edits{suffix}.jsonl")))?;
        let staging = folder.join(format!(".edits{suffix}"));
        if shard == Shard::default() {
            remove_leftovers(folder, &staging)?;
        }
        remove(&staging)?;
        create_folder(&staging)?;
        Ok(Self {
            folder: folder.to_owned(),
            staging,
            journal,
        })
    }

    /// Publishes results: writes all files under temporary names, then the record, and then gives them their names.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(super) fn publish(&mut self, files: &[(String, Vec<u8>)], record: Option<&Record>) -> anyhow::Result<()> {
        for (name, bytes) in files {
            write_file(self.staging.join(name), bytes)?;
        }
        if let Some(record) = record {
            self.journal.add(record)?;
        }
        for (name, _) in files {
            let path = self.folder.join(name);
            fs::rename(self.staging.join(name), &path).map_err(Error::io(&path))?;
            sync_entry(&path)?;
        }
        Ok(())
    }

    /// Publishes a file unless another program has done so first.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn publish_first(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (staged, path) = (self.staging.join(name), self.folder.join(name));
        write_file(&staged, bytes)?;
        match fs::hard_link(&staged, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            // A file system without links.
            Err(_) => fs::rename(&staged, &path).map_err(Error::io(&path))?,
        }
        sync_entry(&path)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What stays is removed by the next run.
        let _ = fs::remove_dir_all(&self.staging);
    }
}

/// Removes what killed shards left, unless their journals are open.
fn remove_leftovers(folder: &Path, own: &Path) -> anyhow::Result<()> {
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let journal = folder.join(format!("{}.jsonl", name.trim_start_matches('.')));
        if pattern::matches(".edits-*-of-*", &name) && path != own && is_free(&journal) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(folder)(error)),
        _ => Ok(()),
    }
}

/// Returns the part of file names that names a shard: nothing for all, else `-0-of-2`.
fn suffix(shard: Shard) -> String {
    if shard == Shard::default() {
        return String::new();
    }
    format!("-{}", shard.to_string().replace('/', "-of-"))
}
