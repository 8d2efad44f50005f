//! KontextBench: edits of real images in five categories, run, measured, viewed and voted on.
//!
//! A [`Bench`] is a folder in the layout of black-forest-labs/kontext-bench. A [`Runner`] runs it with any
//! model, passed as a closure, and writes a [`RunFolder`]: one image and one small file per pair, so that a
//! run resumes after a kill at any moment, and several machines can share it through the file system only
//! ([`Shard`], [`merge`]). A [`Page`] shows one run, or compares two side by side for votes, which
//! [`read_votes`], [`win_rates`] and [`ratings`] evaluate. A judge, passed as a closure, scores the edits of a run one by
//! one ([`Scoring`]), or votes between two runs ([`Comparison`]).

mod anchors;
mod bench;
mod bradley_terry;
mod category;
mod comparison;
mod judge_progress;
mod judge_score;
mod latency;
mod measures;
mod merge;
mod page;
mod pair;
mod problem;
mod rating;
mod record;
mod report;
mod run_folder;
mod run_info;
mod runner;
mod score_report;
mod scores;
mod scoring;
mod shard;
mod vote_report;
mod votes;
mod win_rate;

pub use anchors::{Anchor, KONTEXT_BENCH_ANCHORS, OTHER_ANCHORS};
pub use bench::Bench;
pub use category::{CATEGORIES, category};
pub use comparison::{Comparison, ComparisonSummary, Contest};
pub use judge_progress::JudgeProgress;
pub use judge_score::JudgeScore;
pub use latency::Latency;
pub use measures::{COLUMNS, Column, Measures, Metrics};
pub use merge::merge;
pub use page::Page;
pub use pair::{Pair, derived_seed};
pub use problem::Problem;
pub use rating::{Rating, ratings};
pub use record::{Record, Timing};
pub use run_folder::RunFolder;
pub use run_info::{RunInfo, difference};
pub use runner::{Edited, RunEvent, RunSummary, Runner, Task};
pub use score_report::score_report;
pub use scores::ScoreRecord;
pub use scoring::{Scored, Scoring, ScoringSummary};
pub use shard::Shard;
pub use vote_report::vote_report;
pub use votes::{Choice, Vote, read_votes};
pub use win_rate::{WinRate, wilson, win_rates};
