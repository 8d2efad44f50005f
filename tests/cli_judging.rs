//! Judges and face networks that are external commands, in the example programs.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::desk::Desk;
use common::{program, told};
use kontext::image::{Rgb, RgbImage};
use kontext_bench::kontextbench::CATEGORIES;

/// A judge that answers each line by the pair's number: SC 8 and PQ 2, and "a" wins. Each start adds a line to `starts`,
/// each request one to `requests`. With `stop`, it ends with status 3 at that pair.
const JUDGE: &str = r#"import json, os, sys
stop = sys.argv[1] if len(sys.argv) > 1 else ""
open("starts", "a").write("x\n")
for line in sys.stdin:
    request = json.loads(line)
    open("requests", "a").write(line)
    assert os.path.isabs(request["source"]) and os.path.isfile(request["source"])
    if request["key"] == stop:
        sys.exit(3)
    answer = {"key": request["key"]}
    if request["task"] == "score":
        assert os.path.isfile(request["result"])
        answer |= {"semantic_consistency": 8, "perceptual_quality": 2.0, "comment": "ignored"}
    else:
        # The first run wins, on whichever side it is.
        answer["winner"] = "a" if "/one/" in request["a"] else "b"
    print(json.dumps(answer), flush=True)
"#;

/// A network for faces, to which all are the same; with `blind`, it finds none.
const FACES: &str = r#"import json, sys
for line in sys.stdin:
    request = json.loads(line)
    assert request["task"] == "embed" and open(request["image"], "rb").read(4) == b"\x89PNG"
    face = [1.0, 2.0, 2.0] if sys.argv[1:] != ["blind"] else None
    print(json.dumps({"key": request["key"], "embedding": face}), flush=True)
"#;

/// A folder with a bench of five pairs, two runs of it, and the commands.
fn desk() -> Desk {
    let desk = Desk::new();
    let images = desk.path("bench/test/images");
    kontext_core::create_folder(&images).unwrap();
    let image = RgbImage::from_fn(64, 64, |x, y| Rgb([4 * x as u8, 4 * y as u8, 90]));
    image.save(images.join("a.png")).unwrap();
    let line = |(index, category): (usize, &str)| {
        let line = serde_json::json!({
            "file_name": "images/a.png", "instruction": "make it greyscale", "category": category,
            "key": format!("0000_{index:02}"),
        });
        format!("{line}\n")
    };
    let lines: String = CATEGORIES.into_iter().enumerate().map(line).collect();
    std::fs::write(desk.path("bench/test/metadata.jsonl"), lines).unwrap();
    std::fs::write(desk.path("judge.py"), JUDGE).unwrap();
    std::fs::write(desk.path("faces.py"), FACES).unwrap();
    desk
}

fn runs(desk: &Desk) {
    for name in ["one", "two"] {
        let args = [
            "--bench", "bench", "--out", name, "--name", name, "--device", "cpu", "--steps", "1",
        ];
        desk.good("kontextbench", &args);
    }
}

/// Returns the number of lines of a file; 0 if there is none.
fn lines(desk: &Desk, name: &str) -> usize {
    std::fs::read_to_string(desk.path(name)).map_or(0, |text| text.lines().count())
}

/// Returns `true` if there is a `python3`; says so otherwise.
fn has_python() -> bool {
    let found = std::process::Command::new("python3").arg("--version").output().is_ok();
    if !found {
        #[allow(clippy::print_stderr)] // Why the test skips.
        {
            eprintln!("skipped: there is no python3");
        }
    }
    found
}

#[test]
fn a_command_scores_a_run_goes_on_after_its_end_and_is_shown_next_to_published_scores() {
    if !has_python() {
        return;
    }
    let desk = desk();
    runs(&desk);
    let score = |judge: &'static str| {
        [
            "--bench",
            "bench",
            "--score",
            "one",
            "--judge-name",
            "fake",
            "--judge",
            judge,
        ]
    };
    let (code, _, err) = told(&desk.run("kontextbench", &score("python3 judge.py 0000_03")));
    assert_eq!(code, Some(1), "{err}");
    for words in [
        "error: the judge failed after 3 pair(s), whose answers are kept; the same command goes on: ",
        "it ended (exit status: 3) after 3 line(s), without an answer for the key \"0000_03\"",
    ] {
        assert!(err.contains(words), "{words}\n{err}");
    }
    let (out, err) = desk.good("kontextbench", &score("python3 judge.py"));
    assert!(err.contains("going on after 3 of 5 pairs"), "{err}");
    // One process a call; three pairs, the one at which it ended, and the last two.
    assert_eq!((lines(&desk, "starts"), lines(&desk, "requests")), (2, 6));
    for words in [
        "## Scores by fake\n",
        "| Text Editing | 1 | 8.000 (8.000 to 8.000) | 2.000 (2.000 to 2.000) | 4.000 (4.000 to 4.000) | 7.826 | 7.913 | 7.295 |",
        "| mean of the categories | 5 | 8.000 ",
        "RegionE, arXiv 2510.25590",
        "wrote one/report.md",
    ] {
        assert!(out.contains(words), "{words}\n{out}");
    }
    let report = std::fs::read_to_string(desk.path("one/report.md")).unwrap();
    assert!(
        report.contains("## Scores by fake\n") && report.contains("| preservation, dB |"),
        "{report}"
    );
    // Nothing is left to ask.
    desk.good("kontextbench", &score("python3 judge.py"));
    assert_eq!(lines(&desk, "requests"), 6);
}

#[test]
fn a_command_votes_between_two_runs_and_its_votes_are_counted_as_those_of_people() {
    if !has_python() {
        return;
    }
    let desk = desk();
    runs(&desk);
    let judge = ["--judge", "python3 judge.py", "--judge-name", "fake"];
    let compare = [
        "--bench",
        "bench",
        "--compare",
        "one",
        "two",
        "--out",
        "votes.csv",
        "--both-orders",
    ];
    let args = [&compare[..], &judge].concat();
    let (out, _) = desk.good("kontextbench", &args);
    assert!(out.contains("| one | two | **all** | 5 | 0 | 0 | 100 % ("), "{out}");
    assert_eq!(lines(&desk, "requests"), 10);
    let (counted, _) = desk.good("kontextbench", &["--votes", "votes.csv"]);
    assert!(out.starts_with(&counted), "{out}\n{counted}");
    let text = std::fs::read_to_string(desk.path("votes.csv")).unwrap();
    assert!(text.contains(",\"fake, both orders\"\n"), "{text}");
    // Both sides occur, or every verdict would be of one order.
    let requests = std::fs::read_to_string(desk.path("requests")).unwrap();
    assert_eq!(
        requests
            .lines()
            .filter(|line| line.contains("\"task\":\"compare\""))
            .count(),
        10
    );
    desk.bad(
        "kontextbench",
        &[&compare[..7], &judge].concat(),
        "expected a new file, or one with votes of this judge on these runs with this seed",
    );
    desk.bad(
        "kontextbench",
        &[
            &["--bench", "bench", "--compare", "one", "two", "--out", "one/run.json"],
            &judge[..],
        ]
        .concat(),
        "--out would replace one/run.json, which the run reads (--compare)",
    );
}

#[test]
fn what_is_wrong_with_a_judge_is_told_with_its_line() {
    let desk = desk();
    runs(&desk);
    let bad = |judge: &str, words: &str| {
        desk.bad(
            "kontextbench",
            &["--bench", "bench", "--score", "one", "--judge", judge],
            words,
        );
    };
    bad(
        "no-such-judge",
        "--judge: cannot start the command \"no-such-judge\": No such file",
    );
    bad("'", "is no command; expected a program and its arguments");
    let answer = |answer: &str| format!("sh -c 'while read line; do echo {answer:?}; done'");
    bad(
        &answer("nonsense"),
        "expected a JSON object, got \"nonsense\" (it is no JSON: expected ident) in line 1 of the command",
    );
    bad(
        &answer(r#"{"key": "x"}"#),
        "expected the request's key \"0000_00\", got ",
    );
    bad(
        &answer(r#"{"key": "0000_00", "semantic_consistency": 1}"#),
        "no field `perceptual_quality`; it has `key`, `semantic_consistency`",
    );
    let score = r#"{"key": "0000_00", "semantic_consistency": 1, "perceptual_quality": 10.5}"#;
    bad(
        &answer(score),
        "invalid perceptual_quality: expected a score from 0 to 10, got 10.5 in line 1 of the command",
    );
    let compare = [
        "--bench",
        "bench",
        "--compare",
        "one",
        "two",
        "--out",
        "v.csv",
        "--judge",
    ];
    let judge = answer(r#"{"key": "0000_00", "winner": "one"}"#);
    let words = "invalid winner: expected \"a\", \"b\" or \"tie\", got \"one\" in line 1";
    desk.bad("kontextbench", &[&compare[..], &[&judge]].concat(), words);
}

#[test]
fn a_command_embeds_faces_for_each_turn_of_a_session_and_for_a_run() {
    if !has_python() {
        return;
    }
    let desk = desk();
    let session = |faces: &str| {
        let mut child = program("session")
            .args(["--device", "cpu", "--overwrite", "--identity", faces])
            .current_dir(desk.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(b"make it greyscale\nmake it a woman\n:save S\n:quit\n")
            .unwrap();
        let (code, out, err) = told(&child.wait_with_output().unwrap());
        assert_eq!(code, Some(0), "{out}{err}");
        std::fs::remove_dir_all(desk.path("S")).unwrap();
        (out, err)
    };
    let (out, _) = session("python3 faces.py");
    for turn in [1, 2] {
        assert!(
            out.contains(&format!("turn {turn}: identity with the first image 1.000\n")),
            "{out}"
        );
    }
    let (out, _) = session("python3 faces.py blind");
    assert!(
        out.contains("turn 2: no subject to compare with the first image\n"),
        "{out}"
    );
    // The turns are kept without an identity.
    let (out, err) = session("true");
    assert!(out.contains("turn 2: wrote session-2.png"), "{out}");
    assert!(
        err.contains("error: the turn is kept, but its identity is unknown: "),
        "{err}"
    );

    let run = ["--bench", "bench", "--out", "run", "--device", "cpu", "--steps", "1"];
    let (out, _) = desk.good(
        "kontextbench",
        &[&run[..], &["--identity", "python3 faces.py"]].concat(),
    );
    assert!(
        out.contains("- identity: cosine of the embeddings") && out.contains("| 1.000 (1.000 to 1.000) |"),
        "{out}"
    );
    let facts = std::fs::read_to_string(desk.path("run/run.json")).unwrap();
    assert!(facts.contains("\"identity\": \"python3 faces.py\""), "{facts}");
    desk.bad("kontextbench", &run, "metric identity is python3 faces.py and none");
}
