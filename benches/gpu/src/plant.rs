//! Fault injection: faults that the runner must survive, each followed by a case that must still run.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::bail;
use kontext::{Device, Kind, Tensor};

use crate::Common;
use crate::row::Outcome;
use crate::suite::Case;

/// Options of `plant`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Bytes per allocation.
const PIECE: usize = 1 << 28;
/// Far longer than any limit.
const LONG: Duration = Duration::from_secs(86_400);

pub(crate) fn run(options: &Options, on: Device) -> anyhow::Result<ExitCode> {
    let after = |name: &str| Case::new(format!("after the {name}"), move || works(on));
    let cases = vec![
        Case::new("an error", || bail!("an error, with a cause")),
        after("error"),
        Case::new("a panic", panicking),
        after("panic"),
        Case::new("a crash", || std::process::abort()),
        after("crash"),
        Case::new("an end", || std::process::exit(7)),
        after("end"),
        Case::new("a hang", || {
            sleep(LONG);
            Ok(Outcome::default())
        }),
        after("hang"),
        Case::new("all memory of the machine", exhaust_machine),
        after("exhausted memory"),
        Case::new("all memory of the device", move || match on {
            Device::Cuda(_) => exhaust_device(on),
            _ => Ok(Outcome::skipped("the device is the machine itself")),
        }),
        after("exhausted device"),
    ];
    options.common.selection.run(cases, on)
}

#[allow(clippy::panic, reason = "it is what this case is for")]
fn panicking() -> anyhow::Result<Outcome> {
    panic!("a panic, with a cause")
}

fn works(on: Device) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    outcome.holds(crate::device::works(on), || "the device works no more".to_owned());
    Ok(outcome)
}

/// Allocates and writes host memory until the process is killed.
fn exhaust_machine() -> anyhow::Result<Outcome> {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(vec![held.len() as u8 + 1; PIECE]);
    }
}

/// Allocates device memory until an error occurs.
fn exhaust_device(on: Device) -> anyhow::Result<Outcome> {
    let mut held = Vec::new();
    loop {
        held.push(Tensor::f_ones([PIECE as i64], (Kind::Uint8, on))?);
    }
}
