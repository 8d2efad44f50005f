//! Scores and votes of a judge, which is an external command.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kontext::{Cancel, Result};
use kontext_bench::kontextbench::{Bench, Comparison, JudgeProgress, RunFolder, Scoring, vote_report};
use kontext_cli::external_judge::ExternalJudge;
use kontext_cli::interrupt::cancel_on_ctrl_c;
use kontext_cli::progress::Reporter;
use kontext_cli::{announce, note, say};

use super::{Args, check_file, warn};

/// Scores the edits of a run and prints the scores.
pub(super) fn score(args: &Args, bench: &Bench, folder: &Path) -> anyhow::Result<()> {
    let run = RunFolder::open(folder)?;
    let scoring = Scoring {
        bench,
        run: &run,
        judge: name(args)?,
    };
    let summary = judged(args, |judge, tell| scoring.run(|scored| judge.score(scored), tell))?;
    note_missing(summary.missing, "the run");
    say(summary.text.trim_end())?;
    if let Some(report) = summary.report {
        announce(format_args!("wrote {}", report.display()));
    }
    Ok(())
}

/// Votes between two runs and prints win rates and Elo ratings.
pub(super) fn compare(args: &Args, bench: &Bench, folders: [&PathBuf; 2], out: &Path) -> anyhow::Result<()> {
    check_file("--compare", &args.compare, bench, out)?;
    let [a, b] = folders;
    let (a, b) = (RunFolder::open(a)?, RunFolder::open(b)?);
    let comparison = Comparison {
        bench,
        runs: [&a, &b],
        judge: name(args)?,
        seed: args.seed,
        both_orders: args.both_orders,
    };
    let summary = judged(args, |judge, tell| {
        comparison.run(out, |contest| judge.compare(contest), tell)
    })?;
    warn(&summary.problems);
    note_missing(summary.missing, "one of the runs");
    if summary.inconsistent > 0 {
        note(format_args!(
            "{} pair(s) are a tie because the two orders had different verdicts",
            summary.inconsistent
        ));
    }
    say(vote_report(&summary.votes, args.seed))?;
    announce(format_args!("wrote {}", out.display()));
    Ok(())
}

fn command(args: &Args) -> anyhow::Result<&str> {
    args.judge.as_deref().context("--judge names the judge's command")
}

fn name(args: &Args) -> anyhow::Result<&str> {
    Ok(args.judge_name.as_deref().unwrap_or(command(args)?))
}

fn note_missing(missing: usize, run: &str) {
    if missing > 0 {
        note(format_args!(
            "{missing} pair(s) have no result in {run} and are left out"
        ));
    }
}

/// Starts the judge and lets it work, with a progress bar, until it is done or Ctrl-C.
fn judged<T>(
    args: &Args,
    work: impl FnOnce(&mut ExternalJudge, &mut dyn FnMut(JudgeProgress<'_>) -> ControlFlow<()>) -> Result<T>,
) -> anyhow::Result<T> {
    let cancel = cancel_on_ctrl_c()?;
    let mut judge = ExternalJudge::start(command(args)?).context("--judge")?;
    let (mut reporter, mut done): (Option<Reporter>, usize) = (None, 0);
    let mut tell = |progress: JudgeProgress<'_>| {
        done = progress.done;
        match (progress.key, &mut reporter) {
            (Some(key), Some(reporter)) => reporter.advance(done as u64, key),
            _ => {
                if done > 0 {
                    note(format_args!("going on after {done} of {} pairs", progress.total));
                }
                reporter = Some(Reporter::new("judging", progress.total as u64).starting_at(done as u64));
            }
        }
        cancel.check()
    };
    let result = work(&mut judge, &mut tell);
    let started = reporter.is_some();
    if let Some(reporter) = reporter {
        reporter.clear();
    }
    match result {
        // Ctrl-C reaches the command, too, which may end before its answer.
        Err(error) if error.is_cancelled() || is_cancelled(&cancel) => {
            bail!("stopped after {done} pair(s); run the same command to go on")
        }
        Err(error) if !started => Err(error.into()),
        Err(error) => Err(error).context(format!(
            "the judge failed after {done} pair(s), whose answers are kept; the same command goes on"
        )),
        Ok(result) => Ok(result),
    }
}

fn is_cancelled(cancel: &Cancel) -> bool {
    cancel.check().is_break()
}
