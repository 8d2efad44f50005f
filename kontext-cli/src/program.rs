//! Entry point, output and errors of a program.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use kontext_core::{printable, printable_lines, shortened};

use crate::typed;

/// Characters of a line on stderr.
const LONGEST_LINE: usize = 2000;

/// Parses the command line and runs a program; an error becomes one line on stderr and exit code 1.
pub fn main<A: Parser>(run: impl FnOnce(A) -> anyhow::Result<()>) -> ExitCode {
    let error = match parsed::<A>() {
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
    note(error);
    ExitCode::FAILURE
}

/// Parses the command line. Paths may begin with `~`, which a shell leaves as it is in `--out=~/a.png`.
fn parsed<A: Parser>() -> Result<A, clap::Error> {
    let mut command = typed::with_home(A::command());
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    A::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Writes an error to stderr in one line, with its causes and a remedy.
pub fn complain(error: &anyhow::Error) {
    // The alternate form prints the whole chain of causes, joined by colons.
    note(format_args!("error: {error:#}{}", remedy(error)));
}

/// Writes a text to stdout: the result that a program was asked for. Control characters are escaped. Unlike
/// `println!` it does not panic if the reader is gone (`| head`).
///
/// # Errors
/// If stdout cannot be written.
pub fn say(text: impl Display) -> anyhow::Result<()> {
    let text = printable_lines(&text.to_string());
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

/// Writes a text about finished work to stdout, such as the name of a written file. If the reader is gone, the work
/// goes on.
pub fn announce(text: impl Display) {
    let _ = say(text);
}

/// Writes a line to stderr. Control characters are escaped, line breaks too, and a long line is shortened. If the
/// reader is gone, the work goes on.
pub fn note(line: impl Display) {
    let _ = noted(line);
}

/// Writes a line to stderr, as [`note`]; returns `false` if the reader is gone.
pub fn noted(line: impl Display) -> bool {
    let line = shortened(&printable(&line.to_string()), LONGEST_LINE);
    writeln!(std::io::stderr(), "{line}").is_ok()
}

/// Returns the advice that only a program can give: a library does not know its flags.
fn remedy(error: &anyhow::Error) -> &'static str {
    use kontext::CheckpointError::{LoraUnmatched, LoraWithoutEffect};
    match error.downcast_ref::<kontext::Error>() {
        // The other errors of memory name a remedy themselves.
        Some(error @ kontext::Error::Torch { .. }) if error.is_out_of_memory() => {
            "; try a smaller size, fewer images or another device"
        }
        Some(kontext::Error::Checkpoint { source, .. }) => match source {
            LoraUnmatched { .. } => "; programs with --lora-scale do so with `--allow-unmatched PATTERN`",
            LoraWithoutEffect { .. } => "; programs with --lora-scale do so with --allow-no-effect",
            _ => "",
        },
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
    fn what_a_library_allows_by_name_is_named_as_a_flag_too() {
        let remedy = |source| {
            let error: anyhow::Error = kontext::Error::checkpoint("a.safetensors")(source).into();
            remedy(&error.context("cannot load"))
        };
        let parts = vec!["`clip_l`".to_owned()];
        let unmatched = kontext::CheckpointError::LoraUnmatched { parts, total: 9 };
        assert!(
            unmatched
                .to_string()
                .ends_with("allow them by name (`allow_unmatched`)")
        );
        assert!(remedy(unmatched).ends_with("`--allow-unmatched PATTERN`"));
        let reason = "all is zero".to_owned();
        let nothing = kontext::CheckpointError::LoraWithoutEffect { reason };
        assert!(nothing.to_string().ends_with("allow it (`allow_no_effect`)"));
        assert!(remedy(nothing).ends_with("--allow-no-effect"));
    }

    #[test]
    fn a_text_keeps_its_lines_and_control_characters_in_them_are_escaped() {
        assert_eq!(printable_lines("a\u{1b}[2J\nb\0\n"), "a\\u{1b}[2J\nb\\u{0}\n");
    }
}
