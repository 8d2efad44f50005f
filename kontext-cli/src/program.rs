//! Entry point, output and errors of a program.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

/// Parses the command line and runs a program; an error becomes one line on stderr and exit code 1.
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
    note(printable(&error));
    ExitCode::FAILURE
}

/// Writes an error to stderr in one line, with its causes and a remedy.
pub fn complain(error: &anyhow::Error) {
    // The alternate form prints the whole chain of causes, joined by colons.
    note(printable(&format!("error: {error:#}{}", remedy(error))));
}

/// Writes a line to stdout. Unlike `println!` it does not panic if the reader is gone (`| head`).
///
/// # Errors
/// If stdout cannot be written.
pub fn say(line: impl Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
}

/// Writes a line to stderr.
#[allow(clippy::print_stderr, reason = "a program speaks through its standard streams")]
pub fn note(line: impl Display) {
    eprintln!("{line}");
}

/// Returns the advice that only a program can give: a library does not know its flags.
fn remedy(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref::<kontext::Error>() {
        // The other errors of memory name a remedy themselves.
        Some(error @ kontext::Error::Torch { .. }) if error.is_out_of_memory() => {
            "; try a smaller size, fewer images or another device"
        }
        _ => "",
    }
}

/// Joins the lines of clap's message, without its usage line.
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

/// Escapes control characters: names from damaged files may hold line breaks and terminal codes.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        let text = "error: the following required arguments were not provided:\n  <PATH>\n\nUsage: inspect <PATH>\n\n\
                    For more information, try '--help'.\n";
        assert_eq!(
            in_one_line(text),
            "error: the following required arguments were not provided: <PATH>; for more information, try '--help'"
        );
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("line\nbreak\u{1b}[31m “é”"), "line\\nbreak\\u{1b}[31m “é”");
    }
}
