//! The loop over edits that have no result.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::HumanDuration;
use kontext::image::ImageFormat;
use kontext::{Cancel, Event, Output, Pipeline, Request};
use kontext_bench::kontextbench::Problem;
use sha2::{Digest, Sha256};

use super::facts::Facts;
use super::inventory::expected;
use super::job::Job;
use super::record::{HashedFile, Record};
use super::workspace::Workspace;
use crate::args;
use crate::notes::Notes;
use crate::progress::{self, Reporter};

/// Most requests of one shape that [`edit_group`] gets at once: their images are in memory together.
const MOST_IN_GROUP: usize = 1;

/// The result of a run.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Edits that were made.
    pub(super) made: usize,
    /// Edits that failed.
    pub(super) failed: Vec<Problem>,
    /// Set if the user stopped the run.
    pub(super) stopped: bool,
}

/// A run of edits with one model.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    pub(super) pipe: &'a Pipeline,
    pub(super) facts: &'a Facts,
    /// Records that are there: the same one is not written twice.
    pub(super) records: &'a [Record],
    /// Stops the run after the present group.
    pub(super) cancel: &'a Cancel,
}

impl Runner<'_> {
    /// Makes edits. Those that fail are left out.
    ///
    /// # Errors
    /// If a result cannot be written.
    pub(super) fn run(&self, jobs: &[Job], done: usize, workspace: &mut Workspace) -> anyhow::Result<Outcome> {
        let (mut outcome, begin) = (Outcome::default(), Instant::now());
        let mut reporter = Reporter::new("editing", (done + jobs.len()) as u64).starting_at(done as u64);
        let notes = Notes::default();
        let mut passed = 0;
        for group in groups(jobs, MOST_IN_GROUP) {
            if self.cancel.check().is_break() {
                outcome.stopped = true;
                break;
            }
            let (mut opened, mut requests) = (Vec::new(), Vec::new());
            for job in group {
                match self.open(job) {
                    Ok((request, record)) => {
                        opened.push((job, record));
                        requests.push(request);
                    }
                    Err(error) => fail(job, &error, &mut outcome),
                }
            }
            let outputs = edit_group(self.pipe, &requests, |index, event| {
                if let Some((job, _)) = opened.get(index) {
                    notes.observe(&job.key, event);
                }
            });
            for ((job, record), output) in opened.into_iter().zip(outputs) {
                let files = output.and_then(|output| encoded(&output, job));
                match files {
                    Ok(files) => {
                        self.publish(record, &files, workspace)?;
                        outcome.made += 1;
                    }
                    Err(error) => fail(job, &error.into(), &mut outcome),
                }
            }
            passed += group.len();
            let left = left(begin.elapsed(), passed, jobs.len());
            let last = group.last().map_or("", |job| job.key.as_str());
            reporter.advance(
                (done + passed) as u64,
                format_args!("{last}, {} left", HumanDuration(left)),
            );
        }
        reporter.clear();
        Ok(outcome)
    }

    /// Opens the images of an edit; returns its request, and its record without results.
    fn open(&self, job: &Job) -> anyhow::Result<(Request, Record)> {
        let record = expected(job, self.facts)?;
        let mut request = job.request.clone().seed(record.seed);
        for path in &job.images {
            request
                .images
                .push(Arc::new(args::open_options(request.conformance).open(path)?));
        }
        Ok((request, record))
    }

    fn publish(
        &self,
        mut record: Record,
        files: &[(String, Vec<u8>)],
        workspace: &mut Workspace,
    ) -> anyhow::Result<()> {
        let hashed = |(name, bytes): &(String, Vec<u8>)| HashedFile {
            file: name.clone(),
            sha256: format!("{:x}", Sha256::digest(bytes)),
        };
        record.results = files.iter().map(hashed).collect();
        let is_new = !self.records.contains(&record);
        workspace.publish(files, is_new.then_some(&record))
    }
}

/// Edits a group of requests of one shape; returns their outputs in order. `observe` gets the index in the group with
/// each event.
///
/// Here requests are run together once a pipeline can; until then they run one after the other.
fn edit_group(
    pipe: &Pipeline,
    requests: &[Request],
    observe: impl Fn(usize, &Event<'_>),
) -> Vec<kontext::Result<Output>> {
    let run = |(index, request): (usize, &Request)| {
        pipe.run_with(request, |event| {
            observe(index, &event);
            std::ops::ControlFlow::Continue(())
        })
    };
    requests.iter().enumerate().map(run).collect()
}

/// Returns consecutive edits of one shape, at most `most` at once.
fn groups(jobs: &[Job], most: usize) -> impl Iterator<Item = &[Job]> {
    jobs.chunk_by(|a, b| a.shape == b.shape)
        .flat_map(move |same| same.chunks(most))
}

/// Returns the bytes of each result's file.
fn encoded(output: &Output, job: &Job) -> kontext::Result<Vec<(String, Vec<u8>)>> {
    let file = |(index, name): (usize, &String)| {
        let format = ImageFormat::from_path(Path::new(name)).unwrap_or(ImageFormat::Png);
        Ok((name.clone(), output.encode(index, format)?))
    };
    job.names.iter().enumerate().map(file).collect()
}

fn fail(job: &Job, error: &anyhow::Error, outcome: &mut Outcome) {
    let problem = job.problem(format!("{error:#}"));
    progress::above(format_args!("warning: {problem}"));
    outcome.failed.push(problem);
}

/// Estimates the time left, after `passed` of `total` edits.
fn left(elapsed: Duration, passed: usize, total: usize) -> Duration {
    elapsed.mul_f64(total.saturating_sub(passed) as f64 / passed.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::folder::Found;
    use super::*;

    #[test]
    fn a_group_is_of_one_shape_and_keeps_the_order() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let found = Found {
            base: PathBuf::new(),
            files: names.map(PathBuf::from).to_vec(),
        };
        let mut jobs = found.jobs(&Request::generate(""), &[]);
        for (job, shape) in jobs.iter_mut().zip(["x", "x", "x", "y", "x", "x"]) {
            job.shape = shape.to_owned();
        }
        let keys = |most| -> Vec<String> {
            let keys = |group: &[Job]| group.iter().map(|job| job.key.as_str()).collect();
            groups(&jobs, most).map(keys).collect()
        };
        assert_eq!(keys(2), ["ab", "c", "d", "ef"]);
        assert_eq!(keys(9), ["abc", "d", "ef"]);
        assert_eq!(keys(1), names);
    }

    #[test]
    fn the_time_left_is_that_of_the_edits_so_far() {
        assert_eq!(left(Duration::from_secs(10), 2, 6), Duration::from_secs(20));
        assert_eq!(left(Duration::from_secs(10), 6, 6), Duration::ZERO);
    }
}
