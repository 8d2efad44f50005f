//! Journals: records of edits, one a line.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kontext_core::pattern;

use super::record::Record;
use crate::images::entries;

/// A journal that this process writes, locked as long as it is open.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal of a shard, created if absent, and removes a line that a killed program began.
    ///
    /// # Errors
    /// If another program has it open, or it cannot be written.
    pub(super) fn open(path: PathBuf) -> anyhow::Result<Self> {
        let message = || format!("cannot write {}", path.display());
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .with_context(message)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => bail!(
                "another program makes these edits ({} is locked); wait for it, or take another --shard",
                path.display()
            ),
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(message)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).with_context(message)?;
            file.seek(SeekFrom::End(0)).with_context(message)?;
        }
        kontext_core::sync_entry(&path)?;
        Ok(Self { path, file })
    }

    /// Adds a record and waits until it is on disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn add(&mut self, record: &Record) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        Ok(kontext_core::append(&mut self.file, &self.path, &line)?)
    }
}

/// Returns `true` if no program has this journal open; `false` also on a file system without locks.
pub(super) fn is_free(path: &Path) -> bool {
    match File::options().read(true).write(true).open(path) {
        Ok(file) => file.try_lock().is_ok(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Returns the records of all journals in a folder, also of other shards; none of a folder that does not exist. What is
/// no record, as a line that another shard is writing, is left out.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn records(folder: &Path) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    if !folder.is_dir() {
        return Ok(records);
    }
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !pattern::matches("edits*.jsonl", &name) {
            continue;
        }
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = bytes.split(|byte| *byte == b'\n');
        records.extend(lines.filter_map(|line| serde_json::from_slice::<Record>(line).ok()));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::Map;

    use super::*;

    fn record(key: &str) -> Record {
        Record {
            key: key.to_owned(),
            line: None,
            seed: 1,
            images: Vec::new(),
            request: Map::new(),
            settings: String::new(),
            results: Vec::new(),
        }
    }

    #[test]
    fn a_line_that_was_cut_is_removed_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edits-0-of-2.jsonl");
        Journal::open(path.clone()).unwrap().add(&record("a")).unwrap();
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"key\": \"b")
            .unwrap();
        assert_eq!(records(folder.path()).unwrap(), [record("a")]);
        Journal::open(path.clone()).unwrap().add(&record("c")).unwrap();
        assert_eq!(records(folder.path()).unwrap(), [record("a"), record("c")]);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("\n"));
    }

    #[cfg(unix)]
    #[test]
    fn a_journal_is_written_by_one_program_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edits.jsonl");
        assert!(is_free(&path));
        let first = Journal::open(path.clone()).unwrap();
        assert!(!is_free(&path));
        let error = Journal::open(path.clone()).unwrap_err().to_string();
        assert!(error.contains("another program makes these edits"), "{error}");
        drop(first);
        assert!(is_free(&path));
        Journal::open(path).unwrap();
    }
}
