//! The edits of a source, with names for their results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::bail;
use kontext::Request;
use kontext_bench::kontextbench::Problem;

use super::folder::Found;
use super::job::{Job, Wanted};
use super::line::{EXTENSION, Lines};
use super::manifest::Manifest;
use super::names::Names;
use super::record::Record;
use super::{EditsArgs, Source};

/// The request of the command line, without images.
#[derive(Debug, Clone, Copy)]
pub struct Defaults<'a> {
    /// Options of each edit, unless its line has others. Its seed is the run's, of which those of edits derive.
    pub request: &'a Request,
    /// Set if the prompt was given.
    pub has_prompt: bool,
}

/// Edits of a source: those of the shard, and the problems of those that cannot be made.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) jobs: Vec<Job>,
    pub(super) problems: Vec<Problem>,
    /// Folder and files that are read.
    pub(super) read: Option<(PathBuf, Vec<PathBuf>)>,
}

/// Lists the edits of the shard, with names for their results.
pub(super) fn list(
    source: &Source,
    edits: &EditsArgs,
    defaults: Defaults<'_>,
    out: &Path,
    there: &[Record],
) -> anyhow::Result<Listed> {
    let mut listed = Listed::default();
    let mut all: Vec<Result<Job, Problem>> = match source {
        Source::Manifest(path) => {
            let manifest = Manifest::read(path)?;
            let lines = Lines::new(path, &manifest, &defaults, &edits.reference)?;
            let job = |(number, line): (usize, Result<_, String>)| {
                line.and_then(|line| lines.job(number, &line)).map_err(|what| Problem {
                    file: path.clone(),
                    line: Some(number),
                    what,
                })
            };
            manifest.lines.iter().cloned().map(job).collect()
        }
        Source::Folder(_) | Source::Pattern(_) => {
            if !defaults.has_prompt {
                bail!("no edit is named for the images; give one by --prompt");
            }
            let found = match source {
                Source::Pattern(pattern) => Found::by_pattern(pattern, out)?,
                Source::Folder(folder) | Source::Manifest(folder) => Found::in_folder(folder)?,
            };
            let mut request = defaults.request.clone();
            request.seed = None;
            let jobs = found.jobs(&request, &edits.reference).into_iter().map(Ok).collect();
            listed.read = Some((found.base, found.files));
            jobs
        }
    };
    name_results(&mut all, there);
    for (index, job) in all.into_iter().enumerate() {
        match job {
            _ if !edits.shard.has(index) => {}
            Ok(job) => listed.jobs.push(job),
            Err(problem) => listed.problems.push(problem),
        }
    }
    Ok(listed)
}

/// Gives the results of all edits, also those of other shards, names: those that lines give, then those of an earlier
/// run, then new ones.
fn name_results(all: &mut [Result<Job, Problem>], there: &[Record]) {
    let mut names = Names::default();
    for entry in all.iter_mut() {
        let Ok(job) = entry else { continue };
        let Wanted::Given(name) = &job.wanted else { continue };
        match names.take(name, job.images_made()) {
            Some(taken) => job.names = taken,
            None => {
                let what = format!("an earlier line has the result {name:?}; give each its own `out`");
                *entry = Err(job.problem(what));
            }
        }
    }
    let recorded: BTreeMap<&str, &str> = there
        .iter()
        .filter_map(|record| Some((record.key.as_str(), record.results.first()?.file.as_str())))
        .collect();
    for entry in all.iter_mut().flatten() {
        if let (Wanted::First(_), Some(name)) = (&entry.wanted, recorded.get(entry.key.as_str())) {
            entry.names = names.take(name, entry.images_made()).unwrap_or_default();
        }
    }
    for entry in all.iter_mut().flatten().filter(|job| job.names.is_empty()) {
        if let Wanted::First(stems) = &entry.wanted {
            entry.names = names.take_first(stems, EXTENSION, entry.images_made());
        }
    }
}
