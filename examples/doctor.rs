//! Prints if this machine fits kontext, and otherwise the remedies: `cargo xtask run --release --example doctor`.

use std::process::ExitCode;

use kontext_cli::{complain, say};

fn main() -> ExitCode {
    let diagnosis = kontext::doctor();
    let said = say(&diagnosis);
    if let Err(error) = &said {
        complain(error);
    }
    if said.is_ok() && diagnosis.fits() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
