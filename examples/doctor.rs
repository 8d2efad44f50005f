//! Prints if this machine fits kontext, and otherwise the remedies: `cargo xtask run --release --example doctor`.

#![allow(clippy::print_stdout)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let diagnosis = kontext::doctor();
    println!("{diagnosis}");
    if diagnosis.fits() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
