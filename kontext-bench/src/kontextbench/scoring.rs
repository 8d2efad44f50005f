//! Scoring of a run's edits, one by one, by a judge.

use std::ops::ControlFlow;
use std::path::PathBuf;

use kontext_core::{Error, Result};

use super::{Bench, JudgeProgress, JudgeScore, Pair, RunFolder, ScoreRecord, report, score_report, scores};

/// An edit to score.
#[derive(Debug)]
pub struct Scored<'a> {
    /// The pair.
    pub pair: &'a Pair,
    /// Paths of the pair's images: the one that was edited, then further references.
    pub sources: Vec<PathBuf>,
    /// Path of the result.
    pub result: PathBuf,
}

/// Outcome of a scoring.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ScoringSummary {
    /// The scores of all judges as Markdown, with published ones next to them.
    pub text: String,
    /// Number of pairs of the bench without a result in the run, which were left out.
    pub missing: usize,
    /// Path of the run's report, rewritten with the scores if the run is complete.
    pub report: Option<PathBuf>,
}

/// The scoring of a run by a judge: a closure that returns the scores of one edit.
#[derive(Debug, Clone, Copy)]
pub struct Scoring<'a> {
    /// The bench of the run.
    pub bench: &'a Bench,
    /// The run; its scores are kept in its `scores.jsonl`.
    pub run: &'a RunFolder,
    /// Name of the judge in reports. The scores of several judges of one run are kept apart.
    pub judge: &'a str,
}

impl Scoring<'_> {
    /// Scores each result of the run that this judge has not scored, and writes the run's report again.
    ///
    /// Each score is on disk before the next edit is judged; a later call goes on from there. A result that has been
    /// replaced since is scored again.
    ///
    /// # Errors
    /// Those of `score`; [`Error::InvalidArgument`] for scores out of their range, or if the run has no result;
    /// [`Error::Checkpoint`] with the line if `scores.jsonl` cannot be read; [`Error::Io`] if it cannot be written;
    /// [`Error::Cancelled`] if `tell` returns [`ControlFlow::Break`]. The scores before the error are kept.
    pub fn run(
        &self,
        mut score: impl FnMut(&Scored<'_>) -> Result<JudgeScore>,
        mut tell: impl FnMut(JudgeProgress<'_>) -> ControlFlow<()>,
    ) -> Result<ScoringSummary> {
        let Self { bench, run, judge } = *self;
        let pairs = bench
            .pairs
            .iter()
            .filter_map(|pair| Some((pair, run.record(pair)?.sha256)));
        let pairs: Vec<(&Pair, String)> = pairs.collect();
        if pairs.is_empty() {
            let expected = "a run with a result of a pair of this bench";
            return Err(Error::invalid("run", expected, run.path().display()));
        }
        let mut all = scores::read(run)?;
        let is_of = |record: &ScoreRecord, pair: &Pair| record.judge == judge && record.key == pair.key;
        let has = |all: &[ScoreRecord], pair: &Pair, sha256: &str| {
            all.iter().any(|record| is_of(record, pair) && record.sha256 == sha256)
        };
        let (done, todo): (Vec<_>, Vec<_>) = pairs.iter().partition(|(pair, sha256)| has(&all, pair, sha256));
        let (mut done, total) = (done.len(), pairs.len());
        let mut check = |done: usize, key: Option<&str>| match tell(JudgeProgress { done, total, key }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled { done, total }),
        };
        check(done, None)?;
        for (pair, sha256) in todo {
            let scored = score(&Scored {
                pair,
                sources: pair.images.iter().map(|path| bench.folder.join(path)).collect(),
                result: run.image(pair),
            })?;
            scored.check()?;
            all.retain(|record| !is_of(record, pair));
            all.push(ScoreRecord {
                judge: judge.to_owned(),
                key: pair.key.clone(),
                category: pair.category.clone(),
                sha256: sha256.clone(),
                score: scored,
            });
            scores::write(run, &all)?;
            done += 1;
            check(done, Some(&pair.key))?;
        }
        Ok(ScoringSummary {
            text: score_report(&scores::current(bench, run)?),
            missing: bench.pairs.len() - total,
            report: report::again(bench, run)?,
        })
    }
}
