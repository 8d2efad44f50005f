//! Scores and votes of a judge: kept, continued, and shown in the report.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{PAIRS, bench, edit, info, run};
use image::RgbImage;
use kontext_bench::kontextbench::{
    Bench, Choice, Comparison, ComparisonSummary, Contest, Edited, JudgeScore, Page, RunFolder, Runner, Scored,
    Scoring, ScoringSummary, Task, read_votes, vote_report,
};
use kontext_core::{Error, Result};
use tempfile::TempDir;

/// A bench, and runs of it in the folders "a" and "b".
struct Desk(TempDir, Bench);

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = bench(&folder.path().join("bench"));
        let desk = Self(folder, bench);
        run(&desk.1, &desk.path("a"), "0/1");
        Runner::new(&desk.1, info("b"))
            .run(desk.path("b"), edit, |_| ControlFlow::Continue(()))
            .unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn folder(&self, name: &str) -> RunFolder {
        RunFolder::open(self.path(name)).unwrap()
    }

    fn score(&self, judge: &str, score: impl FnMut(&Scored<'_>) -> Result<JudgeScore>) -> Result<ScoringSummary> {
        let scoring = Scoring {
            bench: &self.1,
            run: &self.folder("a"),
            judge,
        };
        scoring.run(score, |_| ControlFlow::Continue(()))
    }

    fn compare(
        &self,
        judge: &str,
        both_orders: bool,
        choose: impl FnMut(&Contest<'_>) -> Result<Choice>,
    ) -> Result<ComparisonSummary> {
        let comparison = Comparison {
            bench: &self.1,
            runs: [&self.folder("a"), &self.folder("b")],
            judge,
            seed: 3,
            both_orders,
        };
        comparison.run(&self.path("votes.csv"), choose, |_| ControlFlow::Continue(()))
    }
}

/// Scores an edit by its category.
fn by_category(scored: &Scored<'_>) -> Result<JudgeScore> {
    assert!(scored.sources.iter().all(|path| path.is_file()) && scored.result.is_file());
    JudgeScore::new(
        if scored.pair.category == "Text Editing" {
            1.0
        } else {
            9.0
        },
        4.0,
    )
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn scores_are_kept_at_an_error_and_a_later_call_goes_on_to_the_same_bytes() {
    let desk = Desk::new();
    let whole = desk.score("j", by_category).unwrap();
    let (scores, report) = (read(&desk.path("a/scores.jsonl")), read(&desk.path("a/report.md")));
    assert_eq!((scores.lines().count(), whole.missing), (PAIRS, 0));
    assert!(
        report.contains(&whole.text) && whole.report == Some(desk.path("a/report.md")),
        "{report}"
    );
    // Two of ten pairs are of each category: SC is (4 * 9 + 1) / 5, O (4 * 6 + 2) / 5.
    let row = whole
        .text
        .lines()
        .find(|line| line.starts_with("| mean of the categories | 10 |"))
        .unwrap();
    assert!(
        row.contains("| 7.400 (7.400 to 7.400) |") && row.contains("| 5.200 (5.200 to 5.200) |"),
        "{row}"
    );

    std::fs::remove_file(desk.path("a/scores.jsonl")).unwrap();
    let mut asked = 0;
    let error = desk.score("j", |scored| {
        asked += 1;
        if asked > 4 {
            Err(Error::invalid("answer", "a", "b"))
        } else {
            by_category(scored)
        }
    });
    assert_eq!(error.unwrap_err().to_string(), "invalid answer: expected a, got b");
    assert_eq!(read(&desk.path("a/scores.jsonl")).lines().count(), 4);
    desk.score("j", |scored| {
        asked += 1;
        by_category(scored)
    })
    .unwrap();
    assert_eq!(asked, 5 + PAIRS - 4);
    assert_eq!(read(&desk.path("a/scores.jsonl")), scores);
    assert_eq!(read(&desk.path("a/report.md")), report);
    // Going on with the run itself keeps the scores in its report.
    run(&desk.1, &desk.path("a"), "0/1");
    assert_eq!(read(&desk.path("a/report.md")), report);
}

#[test]
fn judges_are_kept_apart_and_a_result_that_is_replaced_is_scored_again() {
    let desk = Desk::new();
    desk.score("j", by_category).unwrap();
    let text = desk.score("k", |_| JudgeScore::new(5.0, 5.0)).unwrap().text;
    assert!(
        text.contains("## Scores by j\n") && text.contains("## Scores by k\n"),
        "{text}"
    );
    let first = &desk.1.pairs[0];
    std::fs::remove_file(desk.folder("a").image(first)).unwrap();
    let other = |task: &Task<'_>| {
        let image = RgbImage::from_pixel(24, 20, image::Rgb([1; 3]));
        Ok(Edited { image, ..edit(task)? })
    };
    Runner::new(&desk.1, info("a"))
        .run(desk.path("a"), other, |_| ControlFlow::Continue(()))
        .unwrap();
    let mut asked = Vec::new();
    let text = desk
        .score("k", |scored| {
            asked.push(scored.pair.key.clone());
            JudgeScore::new(5.0, 5.0)
        })
        .unwrap()
        .text;
    assert_eq!(asked.join(", "), first.key);
    // The other judge has not seen the new result.
    assert!(text.contains("| all edits | 9 | "), "{text}");
    assert!(text.contains("| all edits | 10 | 5.000 (5.000 to 5.000) |"), "{text}");
}

#[test]
fn a_line_of_scores_that_cannot_be_read_is_named() {
    let desk = Desk::new();
    desk.score("j", by_category).unwrap();
    let path = desk.path("a/scores.jsonl");
    let text = read(&path);
    std::fs::write(
        &path,
        text.replacen("\"perceptual_quality\":4.0", "\"perceptual_quality\":40.0", 1),
    )
    .unwrap();
    let error = desk.score("j", by_category).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        cause.contains("line 1: invalid perceptual_quality: expected a score from 0 to 10, got 40"),
        "{cause}"
    );
    let error = desk.score("j", |_| JudgeScore::new(-1.0, 3.0)).unwrap_err();
    assert!(matches!(error, Error::Checkpoint { .. }));
}

#[test]
fn votes_of_a_judge_are_those_of_the_page_with_the_order_drawn_and_undone() {
    let desk = Desk::new();
    let is_of = |path: &Path, run: &str| path.starts_with(desk.path(run));
    let mut shown = BTreeMap::<bool, usize>::new();
    // "a" always wins, on whichever side it is.
    let summary = desk.compare("j", false, |contest| {
        let left = is_of(&contest.left, "a");
        assert!(left != is_of(&contest.right, "a"));
        *shown.entry(left).or_default() += 1;
        Ok(if left { Choice::Left } else { Choice::Right })
    });
    let summary = summary.unwrap();
    assert!(shown.len() == 2 && shown.values().sum::<usize>() == PAIRS, "{shown:?}");
    let (votes, problems) = read_votes(desk.path("votes.csv")).unwrap();
    assert_eq!((votes.len(), problems.len()), (PAIRS, 0));
    assert_eq!(votes, summary.votes);
    let report = vote_report(&votes, 0);
    assert!(report.contains("| a | b | **all** | 10 | 0 | 0 | 100 % ("), "{report}");
    // The page with this seed has the same sides.
    let (a, b) = (desk.folder("a"), desk.folder("b"));
    let page = Page::between(&desk.1, &a, &b).seed(3).html().unwrap();
    let swapped = page.matches("\"swapped\":true").count();
    assert_eq!(swapped, votes.iter().filter(|vote| vote.left == "b").count());
}

#[test]
fn verdicts_that_depend_on_the_order_are_ties_if_both_are_asked() {
    let desk = Desk::new();
    let mut asked = 0;
    let summary = desk.compare("j", true, |contest| {
        asked += 1;
        // Prefers the first, except for one category, where "b" wins in either order.
        let b_first = contest.left.starts_with(desk.path("b"));
        Ok(match contest.pair.category == "Text Editing" && !b_first {
            true => Choice::Right,
            false => Choice::Left,
        })
    });
    let summary = summary.unwrap();
    assert_eq!(
        (asked, summary.inconsistent, summary.missing),
        (2 * PAIRS, PAIRS - 2, 0)
    );
    let report = vote_report(&summary.votes, 0);
    assert!(report.contains("| a | b | Text Editing | 0 | 2 | 0 | "), "{report}");
    assert!(report.contains("| a | b | **all** | 0 | 2 | 8 | "), "{report}");
    assert!(summary.votes.iter().all(|vote| vote.judge == "j, both orders"));
}

#[test]
fn a_comparison_goes_on_after_an_error_and_other_votes_are_refused() {
    let desk = Desk::new();
    let left = |_: &Contest<'_>| Ok(Choice::Left);
    desk.compare("j", false, left).unwrap();
    let whole = read(&desk.path("votes.csv"));
    std::fs::remove_file(desk.path("votes.csv")).unwrap();
    let mut asked = 0;
    let error = desk.compare("j", false, |_| {
        asked += 1;
        if asked > 3 {
            Err(Error::invalid("answer", "a", "b"))
        } else {
            Ok(Choice::Left)
        }
    });
    assert!(error.is_err());
    assert_eq!(read(&desk.path("votes.csv")).lines().count(), 1 + 3);
    let refused = |summary: Result<ComparisonSummary>, words: &str| {
        let error = summary.unwrap_err().to_string();
        assert!(
            error.starts_with("invalid file of votes: expected a new file, or one") && error.contains(words),
            "{error}"
        );
    };
    refused(desk.compare("k", false, left), "by \"j\"");
    refused(desk.compare("j", true, left), "by \"j\"");
    desk.compare("j", false, left).unwrap();
    assert_eq!(read(&desk.path("votes.csv")), whole);
    // Votes of people are in files of their own.
    std::fs::write(
        desk.path("votes.csv"),
        "key,category,left,right,choice,time\n0000_00,x,a,b,tie,\n",
    )
    .unwrap();
    refused(desk.compare("j", false, left), "by \"\"");
}

#[test]
fn pairs_without_a_result_are_left_out_and_counted() {
    let desk = Desk::new();
    for pair in &desk.1.pairs[..3] {
        std::fs::write(desk.folder("a").image(pair), "no image").unwrap();
    }
    let summary = desk.compare("j", false, |_| Ok(Choice::Tie)).unwrap();
    assert_eq!((summary.missing, summary.votes.len()), (3, PAIRS - 3));
    let scores = desk.score("j", by_category).unwrap();
    assert_eq!((scores.missing, scores.report), (3, None));
    let same = Comparison {
        bench: &desk.1,
        runs: [&desk.folder("a"), &desk.folder("a")],
        judge: "j",
        seed: 0,
        both_orders: false,
    };
    let error = same.run(
        &desk.path("other.csv"),
        |_| Ok(Choice::Tie),
        |_| ControlFlow::Continue(()),
    );
    assert!(error.unwrap_err().to_string().contains("two of different names"));
}
