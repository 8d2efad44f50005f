//! Named cases, run in sequence; a failure does not end the program.

use std::convert::Infallible;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use kontext::Device;

use crate::device;
use crate::row::{Outcome, Row, begin};

/// Exit code for a lost device: the program must be restarted for the remaining cases.
const DEVICE_LOST: u8 = 3;

/// Selection of cases.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Run only the cases whose names start with one of these (a comma before a space is part of a name)
    #[arg(long, value_name = "NAME,…", default_value_t)]
    only: Names,
    /// Skip the cases of these names
    #[arg(long, value_name = "NAME,…", default_value_t)]
    skip: Names,
    /// Time limit in seconds, after which no case is started
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    budget: u64,
    /// Print the names and stop
    #[arg(long)]
    list: bool,
}

/// Names of cases on a command line.
#[derive(Debug, Clone, Default)]
struct Names(Vec<String>);

/// A check or a measurement.
pub(crate) struct Case<'a> {
    pub(crate) name: String,
    work: Box<dyn Fn() -> anyhow::Result<Outcome> + 'a>,
}

impl<'a> Case<'a> {
    pub(crate) fn new(name: impl Into<String>, work: impl Fn() -> anyhow::Result<Outcome> + 'a) -> Self {
        Self {
            name: name.into(),
            work: Box::new(work),
        }
    }
}

impl FromStr for Names {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let mut names: Vec<String> = Vec::new();
        for piece in text.split(',') {
            match names.last_mut().filter(|_| piece.starts_with(' ')) {
                Some(last) => *last = format!("{last},{piece}"),
                None => names.push(piece.to_owned()),
            }
        }
        names.retain(|name| !name.is_empty());
        Ok(Self(names))
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

impl Selection {
    fn takes(&self, name: &str) -> bool {
        let Self {
            only: Names(only),
            skip: Names(skip),
            ..
        } = self;
        (only.is_empty() || only.iter().any(|only| name.starts_with(only.as_str())))
            && !skip.iter().any(|skip| skip == name)
    }

    /// Runs the chosen cases.
    pub(crate) fn run(&self, cases: Vec<Case<'_>>, on: Device) -> anyhow::Result<ExitCode> {
        let (begun, budget) = (Instant::now(), Duration::from_secs(self.budget));
        for case in cases.into_iter().filter(|case| self.takes(&case.name)) {
            begin(&case.name)?;
            if self.list {
                continue;
            }
            if begun.elapsed() > budget {
                Row::of(
                    &case.name,
                    Ok(Outcome::skipped(format!(
                        "the {} s for this program are over",
                        self.budget
                    ))),
                )
                .tell()?;
                continue;
            }
            let row = Row::of(&case.name, caught(&case));
            row.tell()?;
            // Each case releases its memory before the next one.
            drop(case);
            let emptied = device::empty_cache(on);
            if (row.failed() || emptied.is_err()) && !device::works(on) {
                eprintln!("{on:?} works no more: its errors stay until the program ends");
                return Ok(ExitCode::from(DEVICE_LOST));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs a case; a panic becomes an error.
fn caught(case: &Case<'_>) -> anyhow::Result<Outcome> {
    catch_unwind(AssertUnwindSafe(|| (case.work)())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(anyhow::anyhow!("a panic: {}", text.unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_prefix_and_left_out_by_name() {
        let names = |text: &str| text.parse().expect("names");
        let selection = Selection {
            only: names("f32,lora"),
            skip: names("f32/edit,lora/fused, f32"),
            budget: 1,
            list: false,
        };
        let all = ["f32/edit", "f32/edit two", "bf16/edit", "lora/fused", "lora/fused, f32"];
        assert_eq!(all.map(|name| selection.takes(name)), [false, true, false, true, false]);
        assert!(
            Selection {
                only: names(""),
                skip: names(""),
                budget: 1,
                list: false
            }
            .takes("any")
        );
    }

    #[test]
    fn a_panic_is_an_error() {
        let case = Case::new("a", || panic!("no {}", "way"));
        assert_eq!(caught(&case).expect_err("failed").to_string(), "a panic: no way");
    }
}
