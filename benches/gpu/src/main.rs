//! Checks and timings of kontext on a device: `gpu-kit check` and `gpu-kit speed`.
//!
//! `check.sh`, next to `Cargo.toml`, runs both with time limits and records the rows that they print.

#![allow(clippy::print_stderr, reason = "a program speaks through its standard streams")]

mod account;
mod adapters;
mod attention;
mod check;
mod cupti;
mod device;
mod observe;
mod own;
mod pace;
mod plant;
mod quantised;
mod row;
mod speed;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kontext_device::device::parse;

use row::{Outcome, Row, begin};
use suite::Selection;

#[derive(Debug, Parser)]
#[command(about = "Checks and times kontext on a device, a row of JSON for each case")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare results with the CPU's and with stored ones
    Check(check::Options),
    /// Measure times and memory
    Speed(speed::Options),
    /// Count operations, launches and bytes of a step on a CPU, scaled to the published model, and time its host
    Account,
    /// Inject faults: a crash, a hang, exhausted memory, and a case after each
    Plant(plant::Options),
}

/// Options common to all commands.
#[derive(Debug, clap::Args)]
struct Common {
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Folder for images
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder that holds `fa3_fwd`, FlashAttention 3
    #[arg(long, value_name = "DIR")]
    fa3: Option<PathBuf>,
    #[command(flatten)]
    selection: Selection,
}

fn main() -> anyhow::Result<ExitCode> {
    let command = Cli::parse().command;
    if matches!(command, Command::Account) {
        account::print()?;
        return Ok(ExitCode::SUCCESS);
    }
    let common = match &command {
        Command::Check(options) => &options.common,
        Command::Speed(options) => &options.common,
        Command::Plant(options) => &options.common,
        Command::Account => return Ok(ExitCode::SUCCESS),
    };
    let (device, reason) = match parse(&common.device) {
        // The first tensor initialises CUDA.
        Ok(device) if device::works(device) => (Some(device), Ok(Outcome::default())),
        Ok(device) => (
            None,
            Err(anyhow::anyhow!("{device:?} is there and does not add up a tensor")),
        ),
        Err(error) => (None, Ok(Outcome::skipped(error.to_string()))),
    };
    let Some(device) = device else {
        begin("device")?;
        Row::of("device", reason).tell()?;
        return Ok(ExitCode::SUCCESS);
    };
    match &command {
        Command::Check(options) => check::run(options, device),
        Command::Speed(options) => speed::run(options, device),
        Command::Plant(options) => plant::run(options, device),
        Command::Account => Ok(ExitCode::SUCCESS),
    }
}
