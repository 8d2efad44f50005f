//! Broken benches, interrupted runs, shards, and their results.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::same_files::files;
use common::{PAIRS, assert_same, bench, edit, info, run, write_bench};
use image::RgbImage;
use kontext_bench::cell::text_of_csv;
use kontext_bench::kontextbench::{Bench, Metrics, RunEvent, RunFolder, RunInfo, Runner, Task, merge};
use kontext_bench::metrics::Embedder;
use kontext_core::{Error, Result};

/// Returns the number of pairs of a bench and its problems after line `number` (from 1) was replaced.
fn problems(number: usize, line: &str) -> (usize, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    write_bench(folder.path(), |index, old| {
        Some(if index + 1 == number { line.to_owned() } else { old })
    });
    let bench = Bench::open(folder.path()).unwrap();
    (
        bench.pairs.len(),
        bench.problems.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn what_is_wrong_with_a_bench_is_told_with_file_and_line() {
    let pair = |key: &str, category: &str, file: &str| {
        format!(r#"{{"file_name": "{file}", "instruction": "p", "key": "{key}", "category": "{category}"}}"#)
    };
    let (text, image) = ("Text Editing", "images/0000.png");
    for (line, pairs, words) in [
        (
            pair("new", text, "images/none.png"),
            PAIRS - 1,
            "test/metadata.jsonl line 7: the image images/none.png: there is no such file; the pair is left out",
        ),
        (
            "{\"file_name\": ".to_owned(),
            PAIRS - 1,
            "test/metadata.jsonl line 7: it is no JSON: EOF while parsing a value; the line is left out",
        ),
        (
            pair("0001_00", text, image),
            PAIRS - 1,
            "test/metadata.jsonl line 7: the key \"0001_00\" stands in line 3 already; the line is left out",
        ),
        (
            pair("new", "Colouring", image),
            PAIRS,
            "test/metadata.jsonl line 7: unknown category \"Colouring\"; it is counted by that name",
        ),
        (
            pair("new", text, "metadata.jsonl"),
            PAIRS - 1,
            "test/metadata.jsonl line 7: the image metadata.jsonl: it is a JSON file, not an image; give a PNG, JPEG \
             or WebP file; the pair is left out",
        ),
    ] {
        assert_eq!(problems(7, &line), (pairs, vec![words.to_owned()]), "{line}");
    }
}

#[test]
fn a_truth_that_is_missing_costs_the_truth_alone() {
    let folder = tempfile::tempdir().unwrap();
    bench(folder.path());
    std::fs::remove_file(folder.path().join("test/images/truth.png")).unwrap();
    let bench = Bench::open(folder.path()).unwrap();
    assert_eq!((bench.pairs.len(), bench.problems.len()), (PAIRS, 2));
    assert!(bench.pairs.iter().all(|pair| pair.truth.is_none()));
    let words = "the image images/truth.png: there is no such file; the pair is judged without the truth";
    assert!(bench.problems[1].to_string().ends_with(words), "{}", bench.problems[1]);
}

#[test]
fn a_image_that_git_lfs_has_not_fetched_is_called_so() {
    let folder = tempfile::tempdir().unwrap();
    bench(folder.path());
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    std::fs::write(folder.path().join("test/images/0002.png"), pointer).unwrap();
    let bench = Bench::open(folder.path()).unwrap();
    // It is the source of two pairs, and a candidate of the first pairs.
    assert_eq!(bench.pairs.len(), PAIRS - 2);
    assert!(bench.problems.iter().all(|problem| {
        problem
            .what
            .contains("a Git LFS pointer, not the image itself: fetch that with `git lfs pull`")
    }));
}

#[test]
fn metadata_in_another_encoding_is_named() {
    let folder = tempfile::tempdir().unwrap();
    bench(folder.path());
    let path = folder.path().join("test/metadata.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("\u{feff}{}", text.replace('\n', "\r\n"))).unwrap();
    let bench = Bench::open(folder.path()).unwrap();
    assert_eq!((bench.pairs.len(), bench.problems.len()), (PAIRS, 0));
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    std::fs::write(&path, wide).unwrap();
    let error = Bench::open(folder.path()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        error.to_string().contains("metadata.jsonl") && cause.contains("UTF-16; save it as UTF-8"),
        "{cause}"
    );
}

#[test]
fn a_folder_that_is_no_bench_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = Bench::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.starts_with("invalid bench: expected a folder with test/metadata.jsonl and images"),
        "{error}"
    );
    std::fs::write(folder.path().join("metadata.jsonl"), "\n{}\n").unwrap();
    let error = Bench::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("got none; metadata.jsonl line 2: no field `file_name`"),
        "{error}"
    );
}

#[test]
fn a_run_measures_every_pair_and_writes_what_it_comes_to() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&folder.path().join("bench"));
    let out = folder.path().join("run");
    let summary = run(&bench, &out, "0/1");
    assert_eq!((summary.done, summary.missing, summary.failed.len()), (PAIRS, 0, 0));
    let run = RunFolder::open(&out).unwrap();
    let record = run.record(&bench.pairs[0]).unwrap();
    // An inverted image changes everywhere, and this one equals the truth except for one pixel.
    assert_eq!(
        (record.measures.right, record.measures.copied),
        (Some(true), Some(false))
    );
    assert!(
        record.measures.changed > 0.5 && record.measures.truth_psnr.unwrap() > 25.0,
        "{record:?}"
    );
    assert_eq!(record.seed, bench.pairs[0].seed(7));
    assert_eq!(run.record(&bench.pairs[9]).unwrap().measures.right, None);
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("| Text Editing | 2 | "), "{report}");
    assert!(
        report.contains("| all | 10 | ") && !report.contains("identity"),
        "{report}"
    );
    let table = std::fs::read_to_string(out.join("results.csv")).unwrap();
    assert!(
        table.starts_with("key,category,instruction,seed,width,height,preservation,changed,"),
        "{table}"
    );
    assert_eq!(table.lines().count(), PAIRS + 1);
    let latency = std::fs::read_to_string(out.join("timings/latency.md")).unwrap();
    assert!(latency.contains("| an edit | 10 | ") && latency.contains("| a step, all else included | 10 | "));
}

#[test]
fn results_hold_no_formulas_and_the_report_no_html() {
    let folder = tempfile::tempdir().unwrap();
    let (key, category, instruction) = (
        "=cmd|' /C calc'!A0",
        "</title><script>alert(5)</script>",
        "@SUM(1), \"+1\"",
    );
    write_bench(&folder.path().join("bench"), |index, line| {
        let mut line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if index == 0 {
            (line["key"], line["category"], line["instruction"]) = (key.into(), category.into(), instruction.into());
        }
        Some(line.to_string())
    });
    let bench = Bench::open(folder.path().join("bench")).unwrap();
    let out = folder.path().join("run");
    run(&bench, &out, "0/1");
    let mut rows = csv::Reader::from_path(out.join("results.csv")).unwrap();
    let rows: Vec<csv::StringRecord> = rows.records().map(std::result::Result::unwrap).collect();
    let first: Vec<&str> = rows[0].iter().collect();
    assert!(
        first[..3].iter().all(|field| !field.starts_with(['=', '+', '-', '@'])),
        "{first:?}"
    );
    let texts: Vec<&str> = first[..3].iter().map(|field| text_of_csv(field)).collect();
    assert_eq!(texts, [key, category, instruction]);
    // All others are numbers, or empty.
    assert!(rows.iter().all(|row| {
        row.iter()
            .skip(3)
            .all(|field| field.is_empty() || field.parse::<f64>().is_ok())
    }));
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(!report.contains("<script") && !report.contains("</title"), "{report}");
    assert_eq!(report.matches("&lt;script&gt;alert(5)").count(), 3, "{report}");
    let page = std::fs::read_to_string(out.join("page.html")).unwrap();
    assert_eq!(page.matches("<script").count(), 2);
}

#[test]
fn a_run_that_is_stopped_after_any_pair_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&folder.path().join("bench"));
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    run(&bench, &whole, "0/1");
    let runner = Runner::new(&bench, info("a"));
    for done in 1..PAIRS {
        let mut before = None;
        let error = runner
            .run(&stopped, edit, |event| match event {
                RunEvent::Started { done, .. } => {
                    before = Some(done);
                    ControlFlow::Continue(())
                }
                _ => ControlFlow::Break(()),
            })
            .unwrap_err();
        assert_eq!(before, Some(done - 1));
        assert_eq!(error.to_string(), format!("cancelled after {done} of {PAIRS} steps"));
    }
    // What a power cut may leave where files cannot be synced: an empty file.
    std::fs::write(stopped.join("pictures/0000_00.png"), "").unwrap();
    std::fs::write(stopped.join("records/0001_00.json"), "").unwrap();
    let summary = run(&bench, &stopped, "0/1");
    assert_eq!(summary.missing, 0);
    assert_same(&stopped, &whole);
}

#[test]
fn a_pair_that_fails_is_told_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&folder.path().join("bench"));
    let (whole, out) = (folder.path().join("whole"), folder.path().join("run"));
    run(&bench, &whole, "0/1");
    let fail = |task: &Task<'_>| {
        if task.pair.key == "0002_01" {
            Err(Error::invalid("image", "another", "this"))
        } else {
            edit(task)
        }
    };
    let summary = Runner::new(&bench, info("a"))
        .run(&out, fail, |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!((summary.done, summary.missing, summary.report), (PAIRS - 1, 1, None));
    let told = summary.failed[0].to_string();
    let words = "the pair \"0002_01\" failed: invalid image: expected another, got this";
    assert_eq!(told, format!("test/metadata.jsonl line 6: {words}"));
    run(&bench, &out, "0/1");
    assert_same(&out, &whole);
}

#[test]
fn shards_in_folders_of_their_own_merge_to_the_bytes_of_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&folder.path().join("bench"));
    let path = |name: &str| folder.path().join(name);
    run(&bench, &path("whole"), "0/1");
    for shard in 0..3 {
        let summary = run(&bench, &path(&format!("shard-{shard}")), &format!("{shard}/3"));
        assert_eq!((summary.done, summary.report), ([4, 3, 3][shard], None));
    }
    let shards: Vec<PathBuf> = [2, 0, 1].map(|shard| path(&format!("shard-{shard}"))).to_vec();
    merge(&bench, &shards, path("merged")).unwrap();
    assert_same(&path("merged"), &path("whole"));
    assert!(path("merged/timings/latency.md").is_file());

    let refused = |shards: &[PathBuf]| merge(&bench, shards, path("none")).unwrap_err().to_string();
    let holes = refused(&shards[..2]);
    assert!(
        holes.contains("expected every pair once, got 3 of them not at all: \"0000_01\", \"0002_00\""),
        "{holes}"
    );
    let doubles = refused(&[&shards[..], &shards[..1]].concat());
    assert!(
        doubles.contains("got 3 of them more than once: \"0001_00\" in ") && doubles.contains(" and "),
        "{doubles}"
    );
    let other = RunInfo::new("a", 8).setting("model", "other");
    Runner::new(&bench, other)
        .run(path("other"), edit, |_| ControlFlow::Continue(()))
        .unwrap();
    let differing = refused(&[shards[0].clone(), path("other")]);
    assert!(
        differing.ends_with("model is none and other, seed is 7 and 8"),
        "{differing}"
    );
    assert!(refused(&[]).contains("expected at least one"));
    std::fs::write(path("shard-0/pictures/0000_00.png"), "damaged").unwrap();
    assert!(refused(&shards).contains("1 of them not at all: \"0000_00\""));
    assert!(!path("none").exists());
    let again = merge(&bench, &[path("whole")], path("merged")).unwrap_err().to_string();
    assert!(again.contains("expected a new or empty folder"), "{again}");
}

#[test]
fn shards_in_one_folder_make_the_bytes_of_one_run_whichever_ends_last() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&folder.path().join("bench"));
    let whole = folder.path().join("whole");
    run(&bench, &whole, "0/1");
    // As many shards as pairs finish almost at once: several find the bench complete, and write its report.
    for round in 0..10 {
        let shared = folder.path().join(format!("shared-{round}"));
        std::thread::scope(|scope| {
            for shard in 0..PAIRS {
                scope.spawn({
                    let (bench, shared) = (&bench, &shared);
                    move || run(bench, shared, &format!("{shard}/{PAIRS}"))
                });
            }
        });
        assert_same(&shared, &whole);
    }
}

#[test]
fn a_folder_of_another_run_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&folder.path().join("bench"));
    let out = folder.path().join("run");
    run(&bench, &out, "0/1");
    let before = files(&out);
    let other = |info: RunInfo| {
        Runner::new(&bench, info)
            .run(&out, edit, |_| ControlFlow::Continue(()))
            .unwrap_err()
    };
    let error = other(RunInfo::new("a", 8).setting("model", "none")).to_string();
    assert!(error.ends_with("seed is 7 and 8"), "{error}");
    let error = other(info("a").setting("steps", "3")).to_string();
    assert!(error.ends_with("steps is none and 3"), "{error}");
    let metrics = Metrics::default().embedder(Means);
    let error = Runner::new(&bench, info("a"))
        .metrics(metrics)
        .run(&out, edit, |_| ControlFlow::Continue(()));
    let error = error.unwrap_err().to_string();
    assert!(
        error.ends_with("metric identity is none and means of colours"),
        "{error}"
    );
    assert!(files(&out) == before);
}

/// An embedder of mean colours.
struct Means;

impl Embedder for Means {
    fn name(&self) -> &str {
        "means of colours"
    }

    fn embed(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
        let mean = |image: &&RgbImage| {
            let sum = |channel: usize| image.pixels().map(|pixel| f32::from(pixel.0[channel])).sum::<f32>();
            (0..3).map(sum).collect()
        };
        Ok(images.iter().map(mean).collect())
    }
}

#[test]
fn identity_is_measured_by_an_embedder_of_the_callers() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench(&folder.path().join("bench")).limit(1);
    assert_eq!(bench.pairs.len(), 5);
    let out = folder.path().join("run");
    let runner = Runner::new(&bench, info("a")).metrics(Metrics::default().embedder(Means));
    runner.run(&out, edit, |_| ControlFlow::Continue(())).unwrap();
    let record = RunFolder::open(&out).unwrap().record(&bench.pairs[0]).unwrap();
    let identity = record.measures.identity.unwrap();
    assert!((0.1..0.95).contains(&identity), "{identity}");
    assert!(
        std::fs::read_to_string(out.join("report.md"))
            .unwrap()
            .contains("| identity |")
    );
}

#[test]
fn a_key_cannot_leave_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    write_bench(&folder.path().join("bench"), |_, line| {
        Some(line.replace("\"0000_00\"", "\"../../0000_00\""))
    });
    let bench = Bench::open(folder.path().join("bench")).unwrap();
    let out = folder.path().join("run");
    run(&bench, &out, "0/1");
    let names: Vec<PathBuf> = files(folder.path()).into_keys().collect();
    assert!(
        names.contains(&Path::new("run/pictures/%2E%2E%2F%2E%2E%2F0000_00.png").to_owned()),
        "{names:?}"
    );
    assert!(
        names
            .iter()
            .all(|name| name.starts_with("bench") || name.starts_with("run")),
        "{names:?}"
    );
}
