//! A working directory for the example programs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use kontext::Layout;
use tempfile::TempDir;

use super::{model, program, told};

/// An empty folder, the working directory of a program.
pub struct Desk(pub TempDir);

impl Desk {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn run(&self, name: &str, args: &[&str]) -> Output {
        program(name)
            .args(args)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a program that must succeed; returns its stdout and stderr.
    pub fn good(&self, name: &str, args: &[&str]) -> (String, String) {
        let (code, out, err) = told(&self.run(name, args));
        assert_eq!(code, Some(0), "{name} {args:?}\n{out}{err}");
        assert!(!err.contains("error:"), "{err}");
        (out, err)
    }

    /// Runs a program that must fail with one line and leave the folder unchanged.
    pub fn bad(&self, name: &str, args: &[&str], words: &str) {
        let before = self.files();
        let (code, out, err) = told(&self.run(name, args));
        assert_eq!(code, Some(1), "{name} {args:?}\n{out}{err}");
        let errors: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{name} {args:?}\n{err}");
        assert_eq!(err.lines().last(), errors.first().copied(), "{name} {args:?}\n{err}");
        assert!(errors[0].contains(words), "{name} {args:?}\n{err}");
        assert!(!err.contains("panicked"), "{err}");
        assert_eq!(self.files(), before, "{name} {args:?}");
    }

    pub fn files(&self) -> BTreeSet<String> {
        std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

pub fn diffusers() -> String {
    model(Layout::Diffusers).display().to_string()
}

/// Returns the flags of a short run, unless `more` overrides them.
pub fn small<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let few = [
        ["--model", model],
        ["--device", "cpu"],
        ["--max-area", "4096"],
        ["--steps", "2"],
    ];
    let kept = few.into_iter().filter(|[flag, _]| !more.contains(flag)).flatten();
    kept.chain(more.iter().copied()).collect()
}
