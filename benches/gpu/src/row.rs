//! Results of checks and measurements: lines of JSON on stdout, for `run.py`.
//!
//! `@begin NAME` is printed before each case, so that a hang or a crash has a name, and `@row {…}` after it.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};

/// The result of one check or measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    name: String,
    status: Status,
    values: Map<String, Value>,
    note: String,
}

/// Outcome of a check or a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// All checks hold.
    Passed,
    /// A check does not hold, or an error occurred.
    Failed,
    /// Only values, no checks.
    Measured,
    /// Not run, for the reason in the note.
    Skipped,
}

/// Maximum length of a note: an error of libtorch can contain a backtrace.
const NOTE: usize = 600;

/// Values of a row in progress, and its failed checks.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    values: Map<String, Value>,
    checks: usize,
    broken: Vec<String>,
    notes: Vec<String>,
    skipped: bool,
}

impl Outcome {
    /// Returns the outcome of a skipped case, with its reason.
    pub(crate) fn skipped(reason: impl Into<String>) -> Self {
        Self {
            notes: vec![reason.into()],
            skipped: true,
            ..Self::default()
        }
    }

    /// Records a value.
    pub(crate) fn value(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.values.insert(key.into(), value.into());
    }

    /// Records a note.
    pub(crate) fn note(&mut self, sentence: impl Into<String>) {
        self.notes.push(sentence.into());
    }

    /// Records a distance, which must be finite and at most `bound`.
    pub(crate) fn at_most(&mut self, key: impl Into<String>, got: f64, bound: f64) {
        let key = key.into();
        self.holds(got <= bound, || format!("{key} is {got:.3e}, allowed are {bound:.1e}"));
        self.value(&key, portable(got));
        self.value(format!("{key}, allowed"), bound);
    }

    /// Records a value, which must be at least `bound`.
    pub(crate) fn at_least(&mut self, key: impl Into<String>, got: f64, bound: f64) {
        let key = key.into();
        self.holds(got >= bound, || {
            format!("{key} is {got:.2}, at least {bound:.2} is wanted")
        });
        self.value(&key, portable(got));
        self.value(format!("{key}, at least"), bound);
    }

    /// Returns `true` if a check failed.
    pub(crate) fn has_failed(&self) -> bool {
        !self.broken.is_empty()
    }

    /// Counts a check, and records `broken` if it does not hold.
    pub(crate) fn holds(&mut self, holds: bool, broken: impl FnOnce() -> String) {
        self.checks += 1;
        if !holds {
            self.broken.push(broken());
        }
    }
}

/// Converts a float to JSON: infinity (the PSNR of equal images) and NaN, which JSON lacks, become strings.
fn portable(value: f64) -> Value {
    if value.is_finite() {
        Value::from(value)
    } else {
        Value::from(value.to_string())
    }
}

impl Row {
    /// Builds the row of a finished case.
    pub(crate) fn of(name: &str, result: anyhow::Result<Outcome>) -> Self {
        let (status, values, note) = match result {
            Ok(Outcome {
                skipped: true,
                values,
                notes,
                ..
            }) => (Status::Skipped, values, notes.join("; ")),
            Ok(Outcome {
                values,
                checks,
                broken,
                notes,
                ..
            }) => {
                let status = match (broken.is_empty(), checks) {
                    (false, _) => Status::Failed,
                    (true, 0) => Status::Measured,
                    (true, _) => Status::Passed,
                };
                (
                    status,
                    values,
                    broken.into_iter().chain(notes).collect::<Vec<_>>().join("; "),
                )
            }
            Err(error) => (Status::Failed, Map::new(), format!("{error:#}")),
        };
        let note = note.replace('\n', " ").chars().take(NOTE).collect();
        Self {
            name: name.to_owned(),
            status,
            values,
            note,
        }
    }

    /// Returns `true` if the case failed.
    pub(crate) fn failed(&self) -> bool {
        self.status == Status::Failed
    }

    /// Prints the row.
    pub(crate) fn tell(&self) -> io::Result<()> {
        line(&format!("@row {}", serde_json::to_string(self)?))
    }
}

/// Announces the next case.
pub(crate) fn begin(name: &str) -> io::Result<()> {
    line(&format!("@begin {name}"))
}

fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_failed_where_one_of_its_checks_does_not_hold() {
        let mut outcome = Outcome::default();
        outcome.at_most("distance", 1e-6, 1e-4);
        outcome.at_most("other", f64::NAN, 1e-4);
        let row = Row::of("a", Ok(outcome));
        assert_eq!((row.status, row.failed()), (Status::Failed, true));
        assert!(row.note.starts_with("other is NaN"), "{}", row.note);
        let mut outcome = Outcome::default();
        outcome.at_least("PSNR", f64::INFINITY, 45.0);
        let row = Row::of("b", Ok(outcome));
        assert_eq!(row.status, Status::Passed);
        assert_eq!(
            serde_json::to_string(&row).expect("json"),
            r#"{"name":"b","status":"passed","values":{"PSNR":"inf","PSNR, at least":45.0},"note":""}"#
        );
    }

    #[test]
    fn numbers_alone_are_measured_and_an_error_keeps_its_causes() {
        let mut outcome = Outcome::default();
        outcome.value("ms", 1.5);
        assert_eq!(Row::of("a", Ok(outcome)).status, Status::Measured);
        let error = anyhow::anyhow!("no\nmemory").context("loading");
        assert_eq!(Row::of("a", Err(error)).note, "loading: no memory");
    }
}
