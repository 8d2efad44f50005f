//! `cargo xtask prose`: the rates of three habits in the prose of the repository, with a limit on two of them.
//!
//! The prose of a library is read by people who search for the words of their field; `counts` names the habits.

mod counts;
mod text;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::{fmt, fs, io};

use counts::{Counts, MOST_IDIOMS, MOST_OPENINGS, Patterns};
use text::Language;

use crate::failure::Failure;
use crate::git;

/// The number of lines that are printed by default.
pub(crate) const LINES: usize = 20;

/// Prints the rates and the `lines` worst lines of the files of the repository `root`: those in `paths` (from the
/// current folder), or all that git tracks. Fails above a limit.
pub(crate) fn check(root: &Path, lines: usize, paths: &[OsString]) -> Result<(), Failure> {
    let mut measured = Measured::new()?;
    for file in files(root, paths)? {
        let Some(language) = Language::of(&file) else {
            continue;
        };
        let path = root.join(&file);
        match fs::read(&path) {
            Ok(source) => measured.add(&file, language, &String::from_utf8_lossy(&source)),
            // Git tracks files until their removal is staged.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::source_io(&path)(error)),
        }
    }
    // Not `print!`, which panics if the reader is gone (`| head`); the findings are reported in any case.
    let _ = write!(io::stdout(), "{}", measured.report(lines));
    Failure::unless_empty("prose", measured.findings())
}

/// The files, as paths from `root`.
fn files(root: &Path, paths: &[OsString]) -> Result<Vec<String>, Failure> {
    let mut words: Vec<&OsStr> = ["ls-files", "-z", "--full-name", "--cached"].map(OsStr::new).into();
    let folder = if paths.is_empty() {
        root
    } else {
        words.extend(["--others", "--exclude-standard", "--"].map(OsStr::new));
        words.extend(paths.iter().map(OsString::as_os_str));
        Path::new(".")
    };
    let output = git::output(folder, &words).ok_or(Failure::Untracked)?;
    let files: Vec<_> = output
        .split('\0')
        .filter(|file| !file.is_empty())
        .map(str::to_owned)
        .collect();
    if files.is_empty() {
        return Err(Failure::Untracked);
    }
    Ok(files)
}

/// Counts of the whole and of its parts.
struct Measured {
    patterns: Patterns,
    total: Counts,
    /// By top-level folder; `.` has the files outside folders.
    folders: BTreeMap<String, Counts>,
    /// The lines with faults, with their number of faults.
    faulty: Vec<(usize, String)>,
}

impl Measured {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            patterns: Patterns::new()?,
            total: Counts::default(),
            folders: BTreeMap::new(),
            faulty: Vec::new(),
        })
    }

    fn add(&mut self, file: &str, language: Language, source: &str) {
        let folder = file.split_once('/').map_or(".", |(folder, _)| folder);
        let sum = self.folders.entry(folder.to_owned()).or_default();
        for line in language.lines(source) {
            let counts = self.patterns.count(&line);
            self.total += counts;
            *sum += counts;
            if counts.faults() > 0 {
                let place = format!("{file}:{}: {}", line.number, line.text);
                self.faulty.push((counts.faults(), place));
            }
        }
    }

    /// The table of rates, then the lines with most faults.
    fn report(&mut self, lines: usize) -> Report<'_> {
        // A stable sort: files and lines stay in their order.
        self.faulty.sort_by_key(|(faults, _)| std::cmp::Reverse(*faults));
        Report { measured: self, lines }
    }

    fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let (openings, idioms) = (self.total.opening_rate(), self.total.idiom_rate());
        if openings > MOST_OPENINGS {
            findings.push(format!(
                "{openings:.1} openings with What, Whether, How, Where or Who in 1000 doc lines, {MOST_OPENINGS} are \
                 the most; open with a noun phrase or a verb"
            ));
        }
        if idioms > MOST_IDIOMS {
            findings.push(format!(
                "{idioms:.1} idioms in 1000 words, {MOST_IDIOMS} is the most; put a standard term for each \
                 (IDIOMS in xtask/src/prose/counts.rs lists them)"
            ));
        }
        findings
    }
}

struct Report<'a> {
    measured: &'a Measured,
    lines: usize,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measured {
            total, folders, faulty, ..
        } = self.measured;
        writeln!(
            f,
            "{:<16}{:>10}{:>10}{:>18}{:>18}{:>18}",
            "", "doc lines", "words", "wh / 1000 lines", "that / 1000 words", "idioms / 1000"
        )?;
        let rows = folders.iter().map(|(folder, counts)| (folder.as_str(), counts));
        for (name, counts) in std::iter::once(("total", total)).chain(rows) {
            writeln!(
                f,
                "{name:<16}{:>10}{:>10}{:>18.1}{:>18.1}{:>18.1}",
                counts.doc_lines,
                counts.words,
                counts.opening_rate(),
                counts.clause_rate(),
                counts.idiom_rate()
            )?;
        }
        for (_, place) in faulty.iter().take(self.lines) {
            writeln!(f, "{place}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of prose without a fault, ten words each.
    fn clean(lines: usize) -> String {
        "/// Returns the sum of two numbers for the given input.\n".repeat(lines)
    }

    fn measure(files: &[(&str, &str)]) -> Measured {
        let mut measured = Measured::new().expect("valid");
        for (file, source) in files {
            measured.add(file, Language::of(file).expect("known"), source);
        }
        measured
    }

    #[test]
    fn the_limits_hold_for_the_total() {
        // 1000 lines and 10,000 words.
        for (openings, idioms, findings) in [(5, 10, 0), (6, 10, 1), (5, 11, 1), (6, 11, 2)] {
            let source = [
                clean(1000 - openings - idioms),
                "/// Where the sum of two numbers is for all input.\n".repeat(openings),
                "/// Returns the sum alone for the given input of two.\n".repeat(idioms),
            ];
            let measured = measure(&[("a/lib.rs", &source.concat())]);
            assert_eq!((measured.total.doc_lines, measured.total.words), (1000, 10_000));
            assert_eq!((measured.total.openings, measured.total.idioms), (openings, idioms));
            assert_eq!(
                measured.findings().len(),
                findings,
                "{openings} openings, {idioms} idioms"
            );
        }
    }

    #[test]
    fn planted_lines_are_reported_worst_first() {
        let source = format!("{}/// What is told.\n{}/// Where.\n", clean(3), clean(2));
        let script = "# It stands alone behind it.\n# What is it?\n";
        let mut measured = measure(&[("a/lib.rs", &source), ("b.sh", script)]);
        let report = measured.report(2).to_string();
        let lines: Vec<_> = report.lines().collect();
        let names: Vec<_> = lines[1..4]
            .iter()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(names, ["total", ".", "a"]);
        assert_eq!(
            lines[4..],
            ["b.sh:1: It stands alone behind it.", "a/lib.rs:4: What is told."]
        );
        assert!(measured.report(9).to_string().ends_with("\na/lib.rs:7: Where.\n"));
    }

    #[test]
    fn files_are_those_that_git_tracks() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("in the repository");
        let tracked = files(root, &[]).expect("listed");
        for file in ["README.md", "xtask/src/main.rs"] {
            assert!(tracked.iter().any(|tracked| tracked == file), "{file} is missing");
        }
        // Tests run in the folder of their package.
        assert_eq!(
            files(root, &["src/main.rs".into()]).expect("listed"),
            ["xtask/src/main.rs"]
        );
        assert!(files(root, &["src/no-such-file.rs".into()]).is_err());
    }
}
