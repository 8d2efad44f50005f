//! What the example programs share.
// Each program uses its part of this, and talks to its user.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::missing_errors_doc)]

pub mod args;
pub mod dump;
pub mod identity;
pub mod judge;
pub mod memory;
pub mod pictures;
pub mod progress;
pub mod round_trip;
pub mod run;
pub mod strip;
pub mod training;
pub mod walker;
pub mod walks;

use std::fmt::Display;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use kontext::crates::kontext_core::OutputFile;

/// The small model that is part of this repository.
pub const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kontext-emoji");

/// Parses the command line and runs the program; any error is one line on stderr and exit code 1.
pub fn main<A: Parser>(run: impl FnOnce(A) -> anyhow::Result<()>) -> ExitCode {
    let error = match A::try_parse() {
        Ok(args) => match run(args) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                return ExitCode::FAILURE;
            }
        },
        // Help and version are no errors.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => in_one_line(&error.render().to_string()),
    };
    eprintln!("{}", printable(&error));
    ExitCode::FAILURE
}

/// Writes an error to stderr, with its causes and what to do, in one line.
pub fn complain(error: &anyhow::Error) {
    // The alternate form prints the whole chain of causes, joined by colons.
    eprintln!("{}", printable(&format!("error: {error:#}{}", remedy(error))));
}

/// Writes a line to stdout. Unlike `println!` it does not panic where the reader has gone (`| head`).
pub fn say(line: impl Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
}

/// Writes a text file, which appears whole or not at all.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = OutputFile::create(path)?;
    file.writer()
        .write_all(text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.publish()?)
}

/// Writes a line to stderr.
pub fn note(line: impl Display) {
    eprintln!("{line}");
}

/// What a program's user can do and a library's cannot know of.
fn remedy(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref::<kontext::Error>() {
        Some(error) if error.is_out_of_memory() => "; try a smaller size, fewer pictures or another device",
        _ => "",
    }
}

/// What clap says, without its overview of the usage.
fn in_one_line(text: &str) -> String {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Usage:"));
    let line = lines
        .collect::<Vec<_>>()
        .join("; ")
        .replace(":; ", ": ")
        .replace("; For more", "; for more");
    line.trim_end_matches('.').to_owned()
}

/// Names from damaged files may hold line breaks and worse.
fn printable(text: &str) -> String {
    let escaped = |c: char| {
        if c.is_control() {
            c.escape_default().collect()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escaped).collect()
}
