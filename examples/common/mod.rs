//! What the example programs share.
// Each program uses its part of this, and talks to its user.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::missing_errors_doc)]

pub mod args;
pub mod dump;
pub mod progress;
pub mod run;

use std::process::ExitCode;

use clap::Parser;

/// Parses the command line and runs the program; any error is one line on stderr and exit code 1.
pub fn main<A: Parser>(run: impl FnOnce(A) -> anyhow::Result<()>) -> ExitCode {
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are no errors.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The alternate form prints the whole chain of causes, joined by colons.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
