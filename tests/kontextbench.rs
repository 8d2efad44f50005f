//! KontextBench with this repository's model: killed and resumed, sharded, merged.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;
#[path = "../kontext-bench/tests/common/same_files.rs"]
mod same_files;

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{program, told};
use rand::RngExt;
use same_files::assert_same_files;
use tempfile::TempDir;

/// Number of pairs in the bench.
const PAIRS: usize = 30;
/// Approximate time of a pair; a kill comes at a random time within two pairs.
const MOMENT: Duration = Duration::from_millis(100);
/// Upper bound on the time of any wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bench of one emoji and supported edits of it, in the published layout.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        let images = desk.path("bench/test/images");
        kontext_core::create_folder(&images).unwrap();
        for name in ["source", "truth"] {
            let image = kontext::open_image(format!("{}/examples/data/emoji-{name}.png", env!("CARGO_MANIFEST_DIR")));
            let image = kontext::crates::kontext_core::images::resize(&image.unwrap(), 64, 64).unwrap();
            image.save(images.join(format!("{name}.png"))).unwrap();
        }
        let instructions = ["turn him into a cook", "make it greyscale", "make it a woman"];
        let categories = kontext_bench::kontextbench::CATEGORIES;
        let line = |index: usize| {
            let mut line = serde_json::json!({
                "file_name": "images/source.png", "instruction": instructions[index % instructions.len()],
                "category": categories[index % categories.len()], "key": format!("0000_{index:02}"),
            });
            if index.is_multiple_of(instructions.len()) {
                line["truth"] = "images/truth.png".into();
            }
            format!("{line}\n")
        };
        std::fs::write(desk.metadata(), (0..PAIRS).map(line).collect::<String>()).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn metadata(&self) -> PathBuf {
        self.path("bench/test/metadata.jsonl")
    }

    fn start(&self, args: &[&str]) -> Child {
        let mut command = program("kontextbench");
        command.args(["--bench", "bench"]).args(args).current_dir(self.0.path());
        // The other modes load no model.
        if !args.iter().any(|arg| ["--check", "--merge", "--page"].contains(arg)) {
            command.args(["--device", "cpu"]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        told(&self.start(args).wait_with_output().unwrap())
    }

    fn good(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}\n{out}{err}");
        out
    }

    /// Returns the number of results in a run's folder.
    fn done(&self, out: &str) -> usize {
        std::fs::read_dir(self.path(out).join("records")).map_or(0, Iterator::count)
    }

    /// Fails with the names of the files that differ, except those with timings.
    #[track_caller]
    fn assert_same(&self, a: &str, b: &str) {
        assert_same_files(&self.path(a), &self.path(b), PAIRS);
    }
}

#[test]
fn a_run_killed_at_ten_random_moments_and_gone_on_with_has_the_bytes_of_an_unbroken_one() {
    let desk = Desk::new();
    let out = desk.good(&["--out", "whole"]);
    assert!(
        out.contains("| Text Editing | 6 | ") && out.contains("| an edit | 30 | "),
        "{out}"
    );
    let mut random = rand::rng();
    let (mut moments, mut unfinished) = (Vec::new(), 0);
    for _ in 0..10 {
        let before = desk.done("killed");
        let mut child = desk.start(&["--out", "killed"]);
        // Some kills come during loading, the others within a pair: a few further on, so that all ten find
        // work.
        let further = random.random_range(0..=2);
        let begin = Instant::now();
        while desk.done("killed") < (before + further).min(PAIRS) && child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < PATIENCE, "it stands still");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(MOMENT.mul_f64(random.random_range(0.0..1.0)));
        // SIGKILL: no handler of the program runs.
        child.kill().unwrap();
        child.wait().unwrap();
        moments.push((begin.elapsed().as_millis(), desk.done("killed")));
        unfinished += usize::from(desk.done("killed") < PAIRS);
    }
    println!("milliseconds and results at each kill: {moments:?}");
    assert!(unfinished > 0, "no kill came before the end");
    desk.good(&["--out", "killed"]);
    desk.assert_same("killed", "whole");
}

#[test]
fn three_shards_merge_to_the_bytes_of_one_run() {
    let desk = Desk::new();
    desk.good(&["--out", "whole"]);
    let shards =
        ["0/3", "1/3", "2/3"].map(|shard| desk.start(&["--out", &format!("shard-{}", &shard[..1]), "--shard", shard]));
    for shard in shards {
        let (code, out, err) = told(&shard.wait_with_output().unwrap());
        assert_eq!(code, Some(0), "{out}{err}");
        assert!(
            out.contains("10 pairs of shard ") && out.contains("; 20 of the bench are not here"),
            "{out}"
        );
    }
    desk.good(&["--merge", "shard-2", "shard-0", "shard-1", "--out", "merged"]);
    desk.assert_same("merged", "whole");
    let (code, _, err) = desk.run(&["--merge", "shard-0", "shard-1", "--out", "none"]);
    let words = "error: invalid shards: expected every pair once, got 10 of them not at all: \"0000_02\", \"0000_05\"";
    assert!(code == Some(1) && err.contains(words), "{err}");
    // Another seed is another run.
    desk.good(&["--out", "other", "--shard", "2/3", "--seed", "1"]);
    let (code, _, err) = desk.run(&["--merge", "shard-0", "shard-1", "other", "--out", "none"]);
    assert!(
        code == Some(1)
            && err
                .contains("error: invalid shards: expected shards of one run, got shard-0 and other: seed is 0 and 1"),
        "{err}"
    );
    let (code, _, err) = desk.run(&["--out", "whole", "--steps", "2"]);
    assert!(code == Some(1) && err.contains("whole: steps is none and 2"), "{err}");
}

#[test]
fn what_is_wrong_with_a_bench_is_told_and_the_rest_runs() {
    let desk = Desk::new();
    let text = std::fs::read_to_string(desk.metadata()).unwrap();
    let lines: Vec<&str> = text.lines().take(6).collect();
    let missing = lines[1].replace("source.png", "none.png");
    let unknown = lines[3].replace(r#""category":"Style Reference""#, r#""category":"Colouring""#);
    let broken = [lines[0], &missing, "{\"file_name\": ", &unknown, lines[0], lines[5]];
    std::fs::write(desk.metadata(), broken.join("\n")).unwrap();
    let (code, out, err) = desk.run(&["--check"]);
    assert_eq!(code, Some(1), "{out}{err}");
    for words in [
        "line 2: the image images/none.png: there is no such file; the pair is left out",
        "line 3: it is no JSON: EOF while parsing a value; the line is left out",
        "line 4: unknown category \"Colouring\"; it is counted by that name",
        "line 5: the key \"0000_00\" stands in line 1 already; the line is left out",
    ] {
        assert!(
            err.contains(&format!("warning: test/metadata.jsonl {words}\n")),
            "{words}\n{err}"
        );
    }
    let out = desk.good(&["--out", "run"]);
    assert!(
        out.contains("| all | 3 | ") && out.contains("- test/metadata.jsonl line 4: unknown category"),
        "{out}"
    );
}

#[test]
fn two_runs_come_to_a_page_and_votes_to_a_table() {
    let desk = Desk::new();
    desk.good(&["--out", "four", "--limit", "1", "--name", "four"]);
    desk.good(&["--out", "two", "--limit", "1", "--name", "two", "--steps", "2"]);
    let out = desk.good(&["--limit", "1", "--page", "four", "two", "--out", "votes.html"]);
    assert!(out.starts_with("wrote votes.html ("), "{out}");
    assert!(
        std::fs::read_to_string(desk.path("votes.html"))
            .unwrap()
            .contains("<title>KontextBench: four and two</title>")
    );
    let lines = [
        "key,category,left,right,choice,time",
        "0000_00,Text Editing,four,two,left,",
        "0000_01,Text Editing,two,four,tie,",
        "x",
    ];
    std::fs::write(desk.path("votes.csv"), lines.join("\n")).unwrap();
    let (code, out, err) = told(
        &program("kontextbench")
            .args(["--votes", "votes.csv"])
            .current_dir(desk.0.path())
            .output()
            .unwrap(),
    );
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("| four | two | **all** | 1 | 0 | 1 | 75 % ("), "{out}");
    assert!(out.contains("\n| four | 2 | 1"), "{out}");
    assert!(
        err.contains("warning: votes.csv line 4: it has 1 fields, not 6; the line is left out"),
        "{err}"
    );
}
