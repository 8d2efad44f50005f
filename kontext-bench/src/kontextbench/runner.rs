//! Resumable run over a bench's pairs, each edited once.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use image::RgbImage;
use kontext_core::{Error, Result};

use super::run_folder::{Writer, png, sha256};
use super::{Bench, Metrics, Pair, Problem, Record, RunFolder, RunInfo, Shard, Timing, report};

/// An edit requested from the model.
#[derive(Debug)]
pub struct Task<'a> {
    /// The pair.
    pub pair: &'a Pair,
    /// The pair's images: the one to edit, then further references.
    pub images: &'a [RgbImage],
    /// Seed of the noise.
    pub seed: u64,
}

/// The model's result.
#[derive(Debug, Clone)]
pub struct Edited {
    /// The edited image.
    pub image: RgbImage,
    /// Number of sampling steps.
    pub steps: usize,
}

/// Progress of a run. Return [`ControlFlow::Break`] to stop it after the current pair.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunEvent<'a> {
    /// The run begins.
    Started {
        /// Pairs done before.
        done: usize,
        /// Total pairs of the shard.
        total: usize,
    },
    /// A pair is done and on disk.
    Done {
        /// The pair's result.
        record: &'a Record,
        /// Timing of the edit.
        timing: &'a Timing,
    },
    /// A pair failed; the run continues. The next run retries it.
    Failed {
        /// The reason.
        problem: &'a Problem,
    },
}

/// Outcome of a run.
#[derive(Debug, Clone)]
pub struct RunSummary {
    /// Pairs of the shard that now have a result.
    pub done: usize,
    /// Pairs that failed.
    pub failed: Vec<Problem>,
    /// Pairs of the whole bench without a result in the folder.
    pub missing: usize,
    /// Path of the report, written if no pair is missing.
    pub report: Option<PathBuf>,
}

/// A run of a bench.
#[derive(Debug)]
pub struct Runner<'a> {
    bench: &'a Bench,
    info: RunInfo,
    metrics: Metrics,
    shard: Shard,
}

impl<'a> Runner<'a> {
    /// Creates a run of all pairs, measured without networks.
    #[must_use]
    pub fn new(bench: &'a Bench, info: RunInfo) -> Self {
        Self {
            bench,
            info,
            metrics: Metrics::default(),
            shard: Shard::default(),
        }
    }

    /// Sets the networks used for measuring.
    #[must_use]
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Sets the shard of pairs to run; all by default.
    #[must_use]
    pub fn shard(mut self, shard: Shard) -> Self {
        self.shard = shard;
        self
    }

    /// Runs every pair of the shard without a result in the folder, and writes the report if the bench is
    /// complete. Several shards may write to one folder concurrently, each shard once.
    ///
    /// A pair whose edit fails is reported to `tell` and left without a result.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the folder holds a different run, [`Error::Io`] if it cannot be written,
    /// [`Error::Cancelled`] if `tell` returns [`ControlFlow::Break`]. [`Error::Io`] and [`Error::Cancelled`] of
    /// `edit` also end the run.
    pub fn run(
        &self,
        out: impl AsRef<Path>,
        mut edit: impl FnMut(&Task<'_>) -> Result<Edited>,
        mut tell: impl FnMut(RunEvent<'_>) -> ControlFlow<()>,
    ) -> Result<RunSummary> {
        let bench = self.bench;
        let info = complete(self.info.clone(), bench, &self.metrics);
        let (folder, writer) = RunFolder::create(out.as_ref(), &info)?;
        let pairs = bench
            .pairs
            .iter()
            .enumerate()
            .filter(|(index, _)| self.shard.has(*index))
            .map(|(_, pair)| pair);
        let (done, todo): (Vec<&Pair>, Vec<&Pair>) = pairs.partition(|pair| folder.record(pair).is_some());
        let (mut done, total) = (done.len(), done.len() + todo.len());
        let stopped = |done| Error::Cancelled { done, total };
        if tell(RunEvent::Started { done, total }).is_break() {
            return Err(stopped(done));
        }
        let mut failed = Vec::new();
        for pair in todo {
            let event = match self.one(pair, &mut edit, &writer) {
                Ok((record, timing)) => {
                    done += 1;
                    tell(RunEvent::Done {
                        record: &record,
                        timing: &timing,
                    })
                }
                // These concern the machine or its user, not the pair.
                Err(error @ (Error::Io { .. } | Error::Cancelled { .. })) => return Err(error),
                Err(error) => {
                    let what = format!("the pair {:?} failed: {}", pair.key, chain(&error));
                    let problem = Problem {
                        file: bench.metadata().to_owned(),
                        line: Some(pair.line),
                        what,
                    };
                    let answer = tell(RunEvent::Failed { problem: &problem });
                    failed.push(problem);
                    answer
                }
            };
            if event.is_break() {
                return Err(stopped(done));
            }
        }
        let records: Vec<Record> = bench.pairs.iter().filter_map(|pair| folder.record(pair)).collect();
        let missing = bench.pairs.len() - records.len();
        let report = if missing == 0 {
            Some(report::write(bench, &folder, &writer, &records)?)
        } else {
            None
        };
        Ok(RunSummary {
            done,
            failed,
            missing,
            report,
        })
    }

    fn one(
        &self,
        pair: &Pair,
        edit: &mut impl FnMut(&Task<'_>) -> Result<Edited>,
        writer: &Writer,
    ) -> Result<(Record, Timing)> {
        let images: Vec<RgbImage> = pair
            .images
            .iter()
            .map(|path| self.bench.image(path))
            .collect::<Result<_>>()?;
        let seed = pair.seed(self.info.seed);
        let begin = Instant::now();
        let edited = edit(&Task {
            pair,
            images: &images,
            seed,
        })?;
        let timing = Timing {
            key: pair.key.clone(),
            seconds: begin.elapsed().as_secs_f64(),
            steps: edited.steps,
        };
        let measures = self.metrics.measure(self.bench, pair, &images[0], &edited.image)?;
        let png = png(&edited.image)?;
        let (width, height) = edited.image.dimensions();
        let record = Record {
            key: pair.key.clone(),
            category: pair.category.clone(),
            instruction: pair.instruction.clone(),
            seed,
            width,
            height,
            sha256: sha256(&png),
            measures,
        };
        writer.pair(pair, &png, Some(&timing), &record)?;
        Ok((record, timing))
    }
}

/// Completes a run's facts with those of its bench and metrics.
fn complete(info: RunInfo, bench: &Bench, metrics: &Metrics) -> RunInfo {
    RunInfo {
        bench: bench.digest(),
        pairs: bench.pairs.len(),
        metrics: metrics.facts(),
        ..info
    }
}

/// Formats an error and its causes in one line.
fn chain(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(_) => format!("{error}: {}", error.causes()),
        None => error.to_string(),
    }
}
