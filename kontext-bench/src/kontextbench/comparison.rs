//! Comparison of two runs, pair by pair, by a judge: votes like those of people.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result};

use super::{Bench, Choice, JudgeProgress, Pair, Problem, RunFolder, Vote, read_votes, votes};

/// Two results of a pair, in the order in which the judge sees them.
#[derive(Debug)]
pub struct Contest<'a> {
    /// The pair.
    pub pair: &'a Pair,
    /// Paths of the pair's images: the one that was edited, then further references.
    pub sources: Vec<PathBuf>,
    /// Path of the result shown first.
    pub left: PathBuf,
    /// Path of the result shown second.
    pub right: PathBuf,
}

/// Outcome of a comparison.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ComparisonSummary {
    /// All votes of the file.
    pub votes: Vec<Vote>,
    /// Number of pairs of the bench without a result in one of the runs, which were left out.
    pub missing: usize,
    /// Of the pairs judged now in both orders, the number of those whose verdicts differed.
    pub inconsistent: usize,
    /// Lines of the file that are no votes; they are not kept.
    pub problems: Vec<Problem>,
}

/// The comparison of two runs by a judge: a closure that returns the better of two results.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The bench of the runs.
    pub bench: &'a Bench,
    /// The two runs.
    pub runs: [&'a RunFolder; 2],
    /// Name of the judge in the votes.
    pub judge: &'a str,
    /// Seed that decides, pair by pair, which result is shown first; the one of a [`Page`](super::Page) with this seed
    /// is on the left there.
    pub seed: u64,
    /// If `true`, each pair is judged in both orders, and verdicts that differ are a tie.
    pub both_orders: bool,
}

impl Comparison<'_> {
    /// Judges each pair of which both runs have a result and that has no vote in the file `out`; adds the votes to it.
    /// [`read_votes`], [`win_rates`](super::win_rates) and [`ratings`](super::ratings) take them as those of people.
    ///
    /// Each vote is on disk before the next pair is judged; a later call goes on from there.
    ///
    /// # Errors
    /// Those of `judge` and [`read_votes`]; [`Error::InvalidArgument`] if the runs have the same name or no pair in
    /// common, or if `out` has votes of another judge, of other runs or with another seed; [`Error::Io`] if it cannot be
    /// written; [`Error::Cancelled`] if `tell` returns [`ControlFlow::Break`]. The votes before the error are kept.
    pub fn run(
        &self,
        out: &Path,
        mut judge: impl FnMut(&Contest<'_>) -> Result<Choice>,
        mut tell: impl FnMut(JudgeProgress<'_>) -> ControlFlow<()>,
    ) -> Result<ComparisonSummary> {
        let names = RunFolder::names(&self.runs)?;
        let [a, b] = self.runs;
        let both = |pair: &&Pair| a.record(pair).is_some() && b.record(pair).is_some();
        let pairs: Vec<&Pair> = self.bench.pairs.iter().filter(both).collect();
        if pairs.is_empty() {
            return Err(Error::invalid(
                "runs",
                "a pair of the bench that each has a result of",
                "none",
            ));
        }
        let (mut votes, problems) = if out.exists() {
            read_votes(out)?
        } else {
            Default::default()
        };
        if let Some(other) = votes.iter().find(|vote| !self.is_own(vote, &names)) {
            let expected = "a new file, or one with votes of this judge on these runs with this seed";
            let got = format!("{}, with a vote on {:?} by {:?}", out.display(), other.key, other.judge);
            return Err(Error::invalid("file of votes", expected, got));
        }
        let has = |pair: &&&Pair| votes.iter().any(|vote| vote.key == pair.key);
        let (mut done, total) = (pairs.iter().filter(has).count(), pairs.len());
        let todo: Vec<&Pair> = pairs.iter().filter(|pair| !has(pair)).copied().collect();
        let mut check = |done: usize, key: Option<&str>| match tell(JudgeProgress { done, total, key }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled { done, total }),
        };
        check(done, None)?;
        let mut inconsistent = 0;
        for pair in todo {
            let [left, right] = self.sides(&pair.key);
            let mut see = |left: usize, right: usize| {
                judge(&Contest {
                    pair,
                    sources: pair.images.iter().map(|path| self.bench.folder.join(path)).collect(),
                    left: self.runs[left].image(pair),
                    right: self.runs[right].image(pair),
                })
            };
            let mut choice = see(left, right)?;
            if self.both_orders && see(right, left)?.swapped() != choice {
                inconsistent += 1;
                choice = Choice::Tie;
            }
            votes.push(Vote {
                key: pair.key.clone(),
                category: pair.category.clone(),
                left: names[left].clone(),
                right: names[right].clone(),
                choice,
                time: String::new(),
                judge: self.name(),
            });
            votes::write(out, &votes)?;
            done += 1;
            check(done, Some(&pair.key))?;
        }
        Ok(ComparisonSummary {
            votes,
            missing: self.bench.pairs.len() - total,
            inconsistent,
            problems,
        })
    }

    /// Returns the indices of the runs shown first and second.
    fn sides(&self, key: &str) -> [usize; 2] {
        if Pair::is_swapped(self.seed, key) {
            [1, 0]
        } else {
            [0, 1]
        }
    }

    /// Returns the judge's name in votes: verdicts of one order and of both are not comparable.
    fn name(&self) -> String {
        let orders = if self.both_orders { ", both orders" } else { "" };
        format!("{}{orders}", self.judge)
    }

    fn is_own(&self, vote: &Vote, names: &[String; 2]) -> bool {
        let [left, right] = self.sides(&vote.key);
        vote.judge == self.name() && vote.left == names[left] && vote.right == names[right]
    }
}
