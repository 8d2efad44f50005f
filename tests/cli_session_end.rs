//! The example `session` with turns that are not saved, and with the settings of a loaded session.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::process::{Command, Stdio};
use std::sync::Arc;

use common::desk::Desk;
use common::{hang_up, program, told};
use kontext::{Device, Pipeline, Request};

const UNSAVED: &str = "1 turn(s) are not saved, and only their images are kept";

fn session(desk: &Desk, args: &[&str]) -> Command {
    let mut command = program("session");
    command
        .args(["--device", "cpu", "--max-area", "4096"])
        .args(args)
        .current_dir(desk.0.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Types these lines, and returns the exit code, stdout and stderr.
fn typed(command: &mut Command, lines: &str) -> (Option<i32>, String, String) {
    use std::io::Write;
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    told(&child.wait_with_output().unwrap())
}

#[cfg(unix)]
mod signals {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::Child;
    use std::time::Duration;

    use super::*;

    /// A second turn that takes a while.
    const STEPS: &str = "300";

    /// Waits until the second turn runs; returns the input, which stays open, and the rest of stdout and stderr.
    fn in_the_second_turn(child: &mut Child) -> (impl Write + use<>, impl Read + use<>, impl Read + use<>) {
        let mut input = child.stdin.take().unwrap();
        input.write_all("make it sepia\nmake it 漢字\n".as_bytes()).unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut err = BufReader::new(child.stderr.take().unwrap());
        wait_for(&mut out, "turn 1: wrote");
        // A note of the run itself, which can be cancelled then.
        wait_for(&mut err, "T5 does not know this of the prompt");
        (input, out, err)
    }

    fn wait_for(reader: &mut impl BufRead, start: &str) {
        let mut line = String::new();
        while !line.starts_with(start) {
            line.clear();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "{start}");
        }
    }

    fn send(child: &Child, signal: &str) {
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    fn text(mut reader: impl Read) -> String {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_session_that_is_asked_to_end_during_a_run_is_saved_though_its_input_stays_open() {
        for signal in [hang_up(), "-TERM"] {
            let desk = Desk::new();
            let mut child = session(&desk, &["--seed", "1", "--steps", STEPS]).spawn().unwrap();
            let (input, out, err) = in_the_second_turn(&mut child);
            send(&child, signal);
            let (out, err) = (text(out), text(err));
            assert_eq!(child.wait().unwrap().code(), Some(0), "{out}{err}");
            assert!(out.ends_with("saved the session in session-unsaved\n"), "{out}{err}");
            assert!(err.contains("error: cancelled after "), "{err}");
            drop(input);
            let (_, out, _) = typed(&mut session(&desk, &["--load", "session-unsaved"]), ":history\n");
            assert!(out.contains("* 1 from 0: make it sepia (seed 1)"), "{out}");
        }
    }

    #[test]
    fn two_ctrl_cs_name_the_turns_that_are_not_saved() {
        let desk = Desk::new();
        let mut child = session(&desk, &["--steps", STEPS]).spawn().unwrap();
        let (input, _out, err) = in_the_second_turn(&mut child);
        send(&child, "-INT");
        // Two signals that come together are one. The second finds the run, or none if it has ended.
        std::thread::sleep(Duration::from_millis(100));
        send(&child, "-INT");
        let err = text(err);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{err}");
        assert!(err.contains(UNSAVED), "{err}");
        drop(input);
    }
}

#[test]
fn turns_that_are_not_saved_are_saved_if_nobody_reads_the_note_about_them() {
    let desk = Desk::new();
    let gone = std::io::pipe().unwrap().1;
    let (code, out, _) = typed(session(&desk, &["--steps", "1"]).stderr(gone), "make it sepia\n");
    assert_eq!(code, Some(0));
    assert!(out.ends_with("saved the session in session-unsaved\n"), "{out}");
    assert!(desk.path("session-unsaved/session.json").is_file());
}

#[test]
fn a_session_is_not_loaded_over_turns_that_are_not_saved_unless_on_request() {
    let desk = Desk::new();
    typed(&mut session(&desk, &["--steps", "1"]), ":save S\n");
    let lines = "make it sepia\n:load S\n:history\n:load! S\n:history\n:load S\n";
    let (code, out, err) = typed(&mut session(&desk, &["--steps", "1"]), lines);
    assert_eq!(code, Some(0), "{out}{err}");
    let refused = "error: 1 turn(s) are not saved; `:save DIR` keeps them, `:load! S` drops all but their images\n";
    assert_eq!(err.matches("error: ").count(), 1, "{err}");
    assert!(err.contains(refused), "{err}");
    assert!(out.contains("* 1 from 0: make it sepia"), "{out}");
    assert!(out.ends_with("* 0: 128x128 pixels\nturn 0: 128x128 pixels\n"), "{out}");
}

#[test]
fn options_that_are_given_hold_for_each_loaded_session_and_name_what_they_replace() {
    let desk = Desk::new();
    typed(&mut session(&desk, &["--steps", "1", "--seed", "3"]), ":save S\n");
    let words = "--seed 7 replaces 3 of the loaded session\n";
    let (_, out, err) = typed(&mut session(&desk, &["--load", "S", "--seed", "7"]), "make it sepia\n");
    assert!(
        err.starts_with(words) && out.contains("wrote session-1.png (seed 7)"),
        "{out}{err}"
    );
    let args = ["--seed", "7", "--steps", "1", "--out", "b.png"];
    let (_, out, err) = typed(&mut session(&desk, &args), ":load S\nmake it sepia\n");
    assert!(
        err.starts_with(words) && out.contains("wrote b-1.png (seed 7)"),
        "{out}{err}"
    );
    let (_, _, err) = typed(
        &mut session(&desk, &["--load", "S", "--seed", "3", "--out", "c.png"]),
        ":quit\n",
    );
    assert_eq!(err, "");
}

#[test]
fn both_encoders_see_what_is_typed_in_a_session_that_had_a_text_for_t5() {
    let desk = Desk::new();
    let root = env!("CARGO_MANIFEST_DIR");
    let pipe = Pipeline::builder().device(Device::Cpu);
    let pipe = Arc::new(pipe.load(format!("{root}/models/kontext-emoji")).unwrap());
    let source = kontext::open_image(format!("{root}/examples/data/emoji-source.png")).unwrap();
    let mut kept = pipe.session(source);
    kept.defaults = Request::default().max_area(4096).steps(2).seed(1);
    kept.defaults.prompt_2 = Some("make it greyscale".to_owned());
    kept.save(desk.path("S")).unwrap();
    let (code, out, err) = typed(&mut session(&desk, &["--load", "S"]), "make it sepia\n");
    assert_eq!(code, Some(0), "{out}{err}");
    let turn = kept.edit("make it sepia").unwrap();
    assert_eq!(kontext::open_image(desk.path("session-1.png")).unwrap(), turn.image);
}
