//! Writers that are killed, and others that are at work in the same folder.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use kontext_core::{OutputFile, OutputFolder, write_file};

/// Set for a child process: its work and its folder.
const WORK: &str = "KONTEXT_TEST_WORK";

/// A child process that has begun to write.
struct Writer(Child);

impl Writer {
    fn start(work: &str, folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "works_as_a_child_process", "--ignored", "--nocapture"])
            .env(WORK, format!("{work}:{}", folder.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        // The test harness prints, too, and its last line has no end before the test's first.
        assert!(lines.map(Result::unwrap).any(|line| line.ends_with("ready")));
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn go_on(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
#[ignore = "runs as a child process of the other tests"]
fn works_as_a_child_process() {
    let Ok(work) = std::env::var(WORK) else {
        return;
    };
    let (work, folder) = work.split_once(':').unwrap();
    let (folder, input) = (Path::new(folder), std::io::stdin());
    let ready = || {
        println!("ready");
        input.lines().count();
    };
    match work {
        "file" => {
            let path = folder.join("whole");
            let mut file = OutputFile::create(&path).unwrap();
            file.writer().write_all(b"all of it").unwrap();
            ready();
            file.publish().unwrap();
        }
        "folder" => {
            let path = folder.join("whole");
            let made = OutputFolder::create(&path).unwrap();
            write_file(made.path().join("part"), b"all of it").unwrap();
            ready();
            made.publish().unwrap();
        }
        _ => {
            ready();
            for index in 0..20 {
                write_file(folder.join(format!("{work}-{index}")), b"all of it").unwrap();
            }
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn temporary(folder: &Path) -> usize {
    let is = |name: &&String| name.starts_with(".kontext-") && name.ends_with(".tmp");
    names(folder).iter().filter(is).count()
}

/// Gives everything in a folder an age.
fn age(folder: &Path, seconds: u64) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path, seconds);
        }
        let time = SystemTime::now() - Duration::from_secs(seconds);
        File::open(&path).unwrap().set_modified(time).unwrap();
    }
}

#[test]
fn what_a_killed_program_left_ten_minutes_ago_is_removed_by_the_next_writer() {
    for work in ["file", "folder"] {
        for (seconds, left) in [(60, 1), (86_400, 0)] {
            let folder = tempfile::tempdir().unwrap();
            Writer::start(work, folder.path()).kill();
            assert_eq!(temporary(folder.path()), 1, "{work}");
            age(folder.path(), seconds);
            write_file(folder.path().join("other"), b"").unwrap();
            // Where locks are kept to one mount, a writer may still be alive.
            assert_eq!(temporary(folder.path()), left, "{work}, {seconds} s");
        }
    }
}

#[test]
fn what_a_living_program_writes_is_left_to_it() {
    for (work, result) in [("file", "whole"), ("folder", "whole/part")] {
        let folder = tempfile::tempdir().unwrap();
        let writer = Writer::start(work, folder.path());
        age(folder.path(), 86_400);
        write_file(folder.path().join("other"), b"").unwrap();
        drop(OutputFolder::create(&folder.path().join("third")).unwrap());
        assert_eq!(temporary(folder.path()), 1, "{work}");
        writer.go_on();
        assert_eq!(names(folder.path()), ["other", "whole"], "{work}");
        assert_eq!(fs::read(folder.path().join(result)).unwrap(), b"all of it");
    }
}

#[test]
fn programs_that_write_to_one_folder_at_once_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let writers: Vec<Writer> = (0..4)
        .map(|index| Writer::start(&index.to_string(), folder.path()))
        .collect();
    writers.into_iter().for_each(Writer::go_on);
    assert_eq!((names(folder.path()).len(), temporary(folder.path())), (80, 0));
}

#[test]
fn the_files_of_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let age = |name: &str, seconds| {
        let file = File::create(path(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
            .unwrap();
    };
    let (of_today, of_yesterday) = (".kontext-abcdef.tmp", ".kontext-ABCDEF.tmp");
    age(of_today, 60);
    age(of_yesterday, 86_400);
    // A name of another form, another program's, and a link out of the folder.
    for name in [
        ".kontext-my-notes.tmp",
        ".tmpABCDEF",
        ".kontext-ABCDEF.tmp.bak",
        "target",
    ] {
        age(name, 86_400);
    }
    symlink(path("target"), path(".kontext-ffffff.tmp")).unwrap();
    write_file(path("new"), b"").unwrap();
    let mut expected = [
        of_today,
        ".kontext-my-notes.tmp",
        ".tmpABCDEF",
        ".kontext-ABCDEF.tmp.bak",
        ".kontext-ffffff.tmp",
        "target",
        "new",
    ];
    expected.sort_unstable();
    assert_eq!(names(folder.path()), expected);
}
