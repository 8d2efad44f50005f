//! The state of each edit in the folder of results.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;

use super::facts::Facts;
use super::job::Job;
use super::record::{HashedFile, Record};
use crate::identity::content_sha256;

/// Edits that a message names.
const SHOWN: usize = 5;

/// Edits that are to be made, and the number of those that are there.
#[derive(Debug)]
pub(super) struct Inventory {
    /// Edits without a result, in order.
    pub(super) missing: Vec<Job>,
    /// Number of the others.
    pub(super) done: usize,
    /// Results that are there, but of another request, image or settings.
    differing: Vec<String>,
    /// Files of the results' names that no record names.
    foreign: Vec<String>,
}

impl Inventory {
    /// Looks at the results of all edits.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(super) fn new(jobs: &[Job], folder: &Path, records: &[Record], facts: &Facts) -> anyhow::Result<Self> {
        let mut by_key = BTreeMap::<&str, Vec<&Record>>::new();
        for record in records {
            by_key.entry(&record.key).or_default().push(record);
        }
        let mut inventory = Self {
            missing: Vec::new(),
            done: 0,
            differing: Vec::new(),
            foreign: Vec::new(),
        };
        for job in jobs {
            let found = found(job, folder)?;
            let of_job = by_key.get(job.key.as_str()).map_or(&[][..], Vec::as_slice);
            // Its images are read only if they may be those of a record.
            let expected = if of_job.is_empty() {
                None
            } else {
                expected(job, facts).ok()
            };
            let same = |record: &&&Record| {
                let expected = expected.as_ref();
                expected.is_some_and(|expected| record.difference(expected).is_none()) && record.has_names(&job.names)
            };
            let same: Vec<&Record> = of_job.iter().filter(same).copied().collect();
            if same.iter().any(|record| record.results == found) {
                inventory.done += 1;
                continue;
            }
            for file in &found {
                if same.iter().any(|record| record.results.contains(file)) {
                    continue;
                }
                match records.iter().rfind(|record| record.results.contains(file)) {
                    Some(record) => {
                        let difference = expected.as_ref().and_then(|expected| record.difference(expected));
                        let difference = difference.unwrap_or_else(|| format!("it is of the edit {}", record.key));
                        inventory.differing.push(format!("{}: {difference}", file.file));
                    }
                    None => inventory.foreign.push(file.file.clone()),
                }
            }
            inventory.missing.push(job.clone());
        }
        Ok(inventory)
    }

    /// Checks that no file is replaced that is not to be.
    ///
    /// # Errors
    /// If there is one; some are named.
    pub(super) fn check(&self, folder: &Path) -> anyhow::Result<()> {
        let folder = folder.display();
        if !self.differing.is_empty() {
            bail!(
                "results in {folder} were made with other options: {}; take another --out, or make them again by \
                 --overwrite",
                listed(&self.differing, "; ")
            );
        }
        if !self.foreign.is_empty() {
            bail!(
                "files in {folder} that are no results of these edits would be replaced: {}; take another --out, or add \
                 --overwrite",
                listed(&self.foreign, ", ")
            );
        }
        Ok(())
    }
}

/// Returns the record of an edit without its results, with the digests of its images now.
///
/// # Errors
/// If an image cannot be read.
pub(super) fn expected(job: &Job, facts: &Facts) -> anyhow::Result<Record> {
    let image = |path: &std::path::PathBuf| {
        let file = path.display().to_string();
        content_sha256(path).map(|sha256| HashedFile { file, sha256 })
    };
    let images = job.images.iter().map(image).collect::<anyhow::Result<_>>()?;
    let mut request = job.written()?;
    request.remove("seed");
    Ok(Record {
        key: job.key.clone(),
        line: job.line,
        seed: job.seed(facts.seed),
        images,
        request,
        settings: facts.digest(),
        results: Vec::new(),
    })
}

/// Returns the files of an edit's results that exist, with their digests.
fn found(job: &Job, folder: &Path) -> anyhow::Result<Vec<HashedFile>> {
    let mut found = Vec::new();
    for name in &job.names {
        let path = folder.join(name);
        if path.is_dir() {
            bail!("the result {} cannot be written: it is a folder", path.display());
        }
        if path.exists() {
            let sha256 = content_sha256(&path)?;
            found.push(HashedFile {
                file: name.clone(),
                sha256,
            });
        }
    }
    Ok(found)
}

fn listed(names: &[String], separator: &str) -> String {
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(separator);
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
