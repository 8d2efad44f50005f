//! The example `session` when its input, its readers or its terminal fail.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use common::desk::Desk;
use common::{hang_up, program, told};

const UNSAVED: &str = "not saved, and only their images are kept";

fn session(desk: &Desk, args: &[&str]) -> Command {
    let mut command = program("session");
    command
        .args(["--device", "cpu"])
        .args(args)
        .current_dir(desk.0.path())
        .env("HOME", desk.path("home"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Types these bytes, and returns the exit code, stdout and stderr.
fn typed(mut child: Child, input: &[u8]) -> (Option<i32>, String, String) {
    child.stdin.take().unwrap().write_all(input).unwrap();
    told(&child.wait_with_output().unwrap())
}

fn run(desk: &Desk, args: &[&str], input: &[u8]) -> (String, String) {
    let (code, out, err) = typed(session(desk, args).spawn().unwrap(), input);
    assert_eq!(code, Some(0), "{out}{err}");
    (out, err)
}

#[test]
fn a_line_that_is_not_utf_8_is_refused_and_the_session_goes_on() {
    let desk = Desk::new();
    let (out, err) = run(&desk, &[], b"make it greyscale\n\xe9\n:save S\n");
    assert!(
        out.contains("turn 1: wrote session-1.png") && out.contains("saved 1 turns in S"),
        "{out}"
    );
    assert!(err.contains("error: the line is not UTF-8 and was not read: "), "{err}");
    assert!(!err.contains(UNSAVED), "{err}");
}

#[test]
fn a_tilde_is_the_home_folder_and_other_users_are_refused_in_words() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("home")).unwrap();
    let (out, err) = run(&desk, &[], b":save ~/x\n:save ~nobody/x\n:load ~/x\n");
    assert!(out.contains("home/x"), "{out}");
    assert!(desk.path("home/x/session.json").is_file());
    assert!(
        err.contains("error: ~nobody/x: the home folder of another user is not looked up"),
        "{err}"
    );
    assert_eq!(desk.files().into_iter().collect::<Vec<_>>(), ["home"]);
}

#[test]
fn turns_that_are_not_saved_are_named_at_the_end() {
    let desk = Desk::new();
    for (input, turns) in [
        (&b"make it sepia\n:undo\nmake it greyscale\n"[..], Some("2 turn(s)")),
        (b"make it sepia\n:quit\n", Some("1 turn(s)")),
        (b"make it sepia\n:save S\n", None),
        (b":quit\n", None),
    ] {
        let (_, err) = run(&desk, &["--overwrite"], input);
        assert_eq!(err.contains(UNSAVED), turns.is_some(), "{err}");
        assert!(turns.is_none_or(|turns| err.contains(turns)), "{err}");
    }
}

#[test]
fn a_session_without_readers_writes_its_images_and_saves() {
    let desk = Desk::new();
    let gone = || std::io::pipe().unwrap().1;
    let child = session(&desk, &["--seed", "1"])
        .stdout(gone())
        .stderr(gone())
        .spawn()
        .unwrap();
    let (code, ..) = typed(child, b"make it sepia\n:history\nmake the skin dark\n:save S\n");
    assert_eq!(code, Some(0));
    let files = ["S", "session-1.png", "session-2.png"];
    assert_eq!(desk.files().into_iter().collect::<Vec<_>>(), files);
}

#[cfg(unix)]
#[test]
fn a_session_whose_terminal_is_closed_is_saved() {
    let desk = Desk::new();
    let mut child = session(&desk, &["--seed", "1"]).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"make it sepia\n").unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("turn 1: wrote")));
    let mut kill = Command::new("kill");
    assert!(
        kill.args([hang_up(), &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    // The signal is pending for the main thread, whose handler runs before it receives the end of the input, which
    // another thread reads.
    drop(input);
    assert_eq!(lines.last().as_deref(), Some("saved the session in session-unsaved"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let (out, _) = run(&desk, &["--load", "session-unsaved"], b":history\n");
    assert!(out.contains("* 1 from 0: make it sepia (seed 1)"), "{out}");
}

#[test]
fn the_image_of_a_turn_replaces_no_file_unless_on_request() {
    let desk = Desk::new();
    std::fs::write(desk.path("session-1.png"), "mine").unwrap();
    let words = "--out would replace session-1.png; choose another --out, or add --overwrite";
    desk.bad("session", &["--device", "cpu"], words);
    desk.bad(
        "session",
        &["--out", "a.png/"],
        "cannot access a.png/: the path ends in a slash",
    );
    run(&desk, &["--overwrite"], b":save S\nmake it sepia\n");
    assert_ne!(std::fs::read(desk.path("session-1.png")).unwrap(), b"mine");
    // Turn 1 of the loaded session would be written over that of this one.
    let (out, err) = run(&desk, &["--out", "b.png"], b"make it sepia\n:load! S\nmake it sepia\n");
    assert!(err.contains("error: --out would replace b-1.png"), "{out}{err}");
}

#[test]
fn options_of_a_loaded_session_are_those_given_and_else_its_own() {
    let desk = Desk::new();
    run(&desk, &["--steps", "2"], b":save S\n");
    let (out, err) = run(
        &desk,
        &["--load", "S", "--seed", "7", "--guidance", "3"],
        b"make it sepia\n",
    );
    assert!(out.contains("wrote session-1.png (seed 7)"), "{out}");
    assert!(
        err.contains("warning: guidance 3 has no effect, because this model embeds none;"),
        "{err}"
    );
    let png = std::fs::read(desk.path("session-1.png")).unwrap();
    let steps = b"steps\0\0\0\0\x002";
    assert!(png.windows(steps.len()).any(|window| window == steps));
    desk.bad("session", &["--steps", "0"], "expected a whole number of at least 1");
    desk.bad("session", &["--seed", "-1"], "expected a whole number from 0");
}
