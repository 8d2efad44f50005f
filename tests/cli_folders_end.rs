//! Many edits in one run of `edit`, in shards, after a kill or Ctrl-C, and with other options.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // In helper functions of a test.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use common::desk::{Desk, diffusers, small};
use common::many::{contents, draw, manifest, names, of_manifest, records, start};
use common::told;
use rand::RngExt;

/// Time that a test waits for a program at most.
const PATIENCE: Duration = Duration::from_secs(300);
/// Longest time between a result and a kill.
const MOMENT: Duration = Duration::from_millis(150);

/// Fails with the names of the files that differ.
#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    let names: Vec<&String> = a
        .keys()
        .chain(b.keys())
        .filter(|name| a.get(*name) != b.get(*name))
        .collect();
    assert!(names.is_empty(), "{names:?} differ");
}

#[test]
fn shards_at_the_same_time_make_the_files_of_one_run() {
    let desk = Desk::new();
    let model = diffusers();
    manifest(&desk, 9);
    let whole = ["--out", "whole"];
    desk.good("edit", &of_manifest(&model, &whole));
    let shards = ["0/2", "1/2"].map(|shard| start(&desk, &of_manifest(&model, &["--out", "halves", "--shard", shard])));
    for (shard, made) in shards.into_iter().zip([5, 4]) {
        let (code, out, err) = told(&shard.wait_with_output().unwrap());
        assert_eq!(
            (code, out),
            (Some(0), format!("made {made} edits in halves, 0 were there\n")),
            "{err}"
        );
    }
    let (mut a, mut b) = (contents(&desk.path("whole")), contents(&desk.path("halves")));
    let lines = |all: &mut BTreeMap<String, Vec<u8>>, journals: &[&str]| {
        let text = journals
            .iter()
            .map(|name| String::from_utf8(all.remove(*name).unwrap()).unwrap());
        let mut lines: Vec<String> = text.collect::<String>().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let halves = lines(&mut b, &["edits-0-of-2.jsonl", "edits-1-of-2.jsonl"]);
    assert_eq!(lines(&mut a, &["edits.jsonl"]), halves);
    assert_eq!((a.len(), &a), (10, &b));
    // A run of all finds those of the shards.
    let (out, _) = desk.good("edit", &of_manifest(&model, &["--out", "halves"]));
    assert_eq!(out, "made 0 edits in halves, 9 were there\n");
}

#[test]
fn shards_that_draw_a_seed_at_the_same_time_agree_on_one() {
    let desk = Desk::new();
    let model = diffusers();
    manifest(&desk, 4);
    let flags = |shard| {
        let flags = of_manifest(&model, &["--out", "out", "--shard", shard]);
        let at = flags.iter().position(|flag| *flag == "--seed").unwrap();
        [&flags[..at], &flags[at + 2..]].concat()
    };
    let shards = ["0/4", "1/4", "2/4", "3/4"].map(|shard| start(&desk, &flags(shard)));
    for shard in shards {
        let (code, out, err) = told(&shard.wait_with_output().unwrap());
        assert_eq!(
            (code, out.as_str()),
            (Some(0), "made 1 edits in out, 0 were there\n"),
            "{err}"
        );
    }
    let (out, _) = desk.good("edit", &flags("0/1"));
    assert_eq!(out, "made 0 edits in out, 4 were there\n");
}

#[test]
fn other_options_and_other_files_are_refused_or_made_again_on_request() {
    let desk = Desk::new();
    let model = diffusers();
    manifest(&desk, 4);
    let run = |more: &[&str]| told(&desk.run("edit", &of_manifest(&model, &[&["--out", "out"], more].concat())));
    std::fs::create_dir(desk.path("out")).unwrap();
    std::fs::write(desk.path("out/1-2.png"), "mine").unwrap();
    let (code, _, err) = run(&[]);
    let words = "files in out that are no results of these edits would be replaced: 1-2.png; take another --out";
    assert!(code == Some(1) && err.contains(words), "{err}");
    assert_eq!(names(&desk.path("out")), ["1-2.png"]);
    std::fs::remove_file(desk.path("out/1-2.png")).unwrap();
    assert_eq!(run(&[]).1, "made 4 edits in out, 0 were there\n");
    let before = contents(&desk.path("out"));
    for (more, words) in [
        (
            &["--steps", "2"][..],
            "0-1.png: steps is 1 and 2; 1-2.png: steps is 1 and 2",
        ),
        (
            &["--seed", "8"],
            "of another run: seed is 7 and 8; take another --out, or make them again by --overwrite",
        ),
        (&["--threads", "1"], "of another run: threads is none and 1"),
        (&["--guidance", "3"], "0-1.png: guidance is none and 3.0"),
    ] {
        let (code, _, err) = run(more);
        assert!(
            code == Some(1) && err.contains(words) && err.lines().count() == 1,
            "{more:?}\n{err}"
        );
        assert_eq!(contents(&desk.path("out")), before, "{more:?}");
    }
    // A seed that is not given is the folder's, and paths are not options.
    std::fs::rename(desk.path("m.jsonl"), desk.path("renamed.jsonl")).unwrap();
    let flags = [
        "--manifest",
        "renamed.jsonl",
        "--prompt",
        "hat {n}",
        "--out",
        "out",
        "--steps",
        "1",
        "--max-area",
        "1024",
    ];
    assert_eq!(
        desk.good("edit", &small(&model, &flags)).0,
        "made 0 edits in out, 4 were there\n"
    );
    std::fs::rename(desk.path("renamed.jsonl"), desk.path("m.jsonl")).unwrap();
    // One line is changed, one image, and one result is lost.
    let text = std::fs::read_to_string(desk.path("m.jsonl")).unwrap();
    std::fs::write(desk.path("m.jsonl"), text.replace("\"n\": 1", "\"n\": \"new\"")).unwrap();
    draw(&desk, "2.png", 7);
    std::fs::remove_file(desk.path("out/0-1.png")).unwrap();
    let (code, _, err) = run(&[]);
    assert!(
        code == Some(1) && err.contains("1-2.png: prompt is \"hat 1\" and \"hat new\"; 2-3.png: image is "),
        "{err}"
    );
    assert_eq!(run(&["--overwrite"]).1, "made 3 edits in out, 1 were there\n");
    let after = contents(&desk.path("out"));
    for (name, same) in [
        ("0-1.png", true),
        ("1-2.png", false),
        ("2-3.png", false),
        ("3-4.png", true),
    ] {
        assert_eq!(before[name] == after[name], same, "{name}");
    }
    assert_eq!(run(&[]).1, "made 0 edits in out, 4 were there\n");
    // Settings of the run: all are made again.
    assert_eq!(
        run(&["--threads", "1", "--overwrite"]).1,
        "made 4 edits in out, 0 were there\n"
    );
    assert_eq!(run(&["--threads", "1"]).1, "made 0 edits in out, 4 were there\n");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_after_the_present_edit_and_the_same_command_goes_on() {
    let desk = Desk::new();
    let model = diffusers();
    manifest(&desk, 60);
    let flags = of_manifest(&model, &["--out", "out"]);
    let mut child = start(&desk, &flags);
    wait_for(&desk, &mut child, 2);
    let id = child.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let (code, out, err) = told(&child.wait_with_output().unwrap());
    assert_eq!(code, Some(1), "{out}{err}");
    let made = records(&desk.path("out")).len();
    let words = format!("error: stopped after {made} of 60 edits; the same command goes on\n");
    assert!(err.ends_with(&words), "{err}");
    assert_eq!(names(&desk.path("out")).len(), made + 2);
    let (out, _) = desk.good("edit", &flags);
    assert_eq!(out, format!("made {} edits in out, {made} were there\n", 60 - made));
}

/// Waits until the folder `out` has `results` results, or the program has ended.
fn wait_for(desk: &Desk, child: &mut Child, results: usize) {
    let begin = Instant::now();
    while done(desk) < results && child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < PATIENCE, "it stands still");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the number of results in the folder `out`.
fn done(desk: &Desk) -> usize {
    let entries = std::fs::read_dir(desk.path("out")).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "png"))
        .count()
}

/// Runs `requests` requests, kills the program `kills` times at random moments, and compares all files with those of an
/// unbroken run.
fn kill(requests: u32, kills: usize) {
    let desk = Desk::new();
    let model = diffusers();
    manifest(&desk, requests);
    desk.good("edit", &of_manifest(&model, &["--out", "whole"]));
    let flags = of_manifest(&model, &["--out", "out"]);
    let (mut random, mut moments) = (rand::rng(), Vec::new());
    for _ in 0..kills {
        let before = done(&desk);
        let mut child = start(&desk, &flags);
        // Some come during loading, before the first result; all before the last one.
        let further = random.random_range(0..=requests as usize / (kills + 1));
        wait_for(&desk, &mut child, before + further);
        std::thread::sleep(MOMENT.mul_f64(random.random_range(0.0..1.0)));
        // SIGKILL: no handler of the program runs.
        child.kill().unwrap();
        child.wait().unwrap();
        moments.push(done(&desk));
    }
    println!("results at each kill: {moments:?}");
    assert!(moments[0] < requests as usize, "no kill came before the end");
    desk.good("edit", &flags);
    assert_eq!(names(&desk.path("out")).len(), requests as usize + 2);
    assert_same(&desk.path("out"), &desk.path("whole"));
}

#[test]
fn a_run_killed_four_times_and_gone_on_with_has_the_bytes_of_an_unbroken_one() {
    kill(40, 4);
}

#[test]
#[ignore = "takes a minute: cargo xtask test --test cli_folders_end -- --ignored"]
fn two_hundred_requests_killed_ten_times_have_the_bytes_of_an_unbroken_run() {
    kill(200, 10);
}
