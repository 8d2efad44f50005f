//! Quality of the modes of reuse between steps, on held-out edits.

use std::fmt;
use std::str::FromStr;

use kontext::{Error, Pipeline, ReferenceReuse, StepCache};
use kontext_bench::metrics::Perceptual;
use kontext_bench::reuse::{Fidelity, Row, Table};

use crate::held_out::HeldOutEdits;
use crate::progress::above;

/// Separator of the two parts of a mode.
const SEPARATOR: char = '/';

/// A way to reuse results: a step cache, a reuse of references, or both. Its text is that of the part that is not off, or
/// of both with a slash between: `magcache/references`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mode {
    /// The step cache.
    pub step_cache: StepCache,
    /// The reuse of references.
    pub reference_reuse: Option<ReferenceReuse>,
}

impl Mode {
    /// All steps are computed.
    pub const EXACT: Self = Self {
        step_cache: StepCache::Off,
        reference_reuse: None,
    };

    /// Returns the text without parameters.
    fn family(&self) -> String {
        let text = self.to_string();
        let names = text
            .split(SEPARATOR)
            .map(|part| part.split(':').next().unwrap_or_default());
        names.collect::<Vec<_>>().join("/")
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference_reuse {
            None => write!(f, "{}", self.step_cache),
            Some(reuse) if self.step_cache.is_off() => write!(f, "{reuse}"),
            Some(reuse) => write!(f, "{}{SEPARATOR}{reuse}", self.step_cache),
        }
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> kontext::Result<Self> {
        let is_reuse = |text: &str| ["references", "region"].contains(&text.split(':').next().unwrap_or_default());
        let (cache, reuse) = match text.split_once(SEPARATOR) {
            Some((cache, reuse)) => (cache, Some(reuse)),
            None if is_reuse(text) => ("off", Some(text)),
            None => (text, None),
        };
        Ok(Self {
            step_cache: cache.parse()?,
            reference_reuse: reuse.map(str::parse).transpose()?,
        })
    }
}

/// Choice of runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The modes.
    pub modes: Vec<Mode>,
    /// Number of steps.
    pub steps: usize,
    /// Seed of the first edit's noise; the next ones have seed + 1, seed + 2, …
    pub seed: u64,
}

/// Runs all edits exactly and by each mode, with the same noise, and compares the results.
///
/// # Errors
/// If a run fails.
pub fn table(
    pipe: &Pipeline,
    edits: &HeldOutEdits,
    options: &Options,
    perceptual: Option<&Perceptual>,
) -> anyhow::Result<Table> {
    let run = |label, mode: &Mode| {
        edits.run(pipe, label, edits.known().count(), |request, index| {
            let seed = options.seed.wrapping_add(index as u64);
            let request = request.steps(options.steps).seed(seed).step_cache(mode.step_cache);
            match &mode.reference_reuse {
                Some(reuse) => request.reference_reuse(reuse.clone()),
                None => request,
            }
        })
    };
    let exact = run("exact", &Mode::EXACT)?;
    let quality = edits.known().measure(&exact.images, None)?;
    let mut table = Table {
        steps: options.steps,
        psnr: quality.psnr,
        nearest: quality.nearest,
        pdist: perceptual.map(|perceptual| perceptual.name().to_owned()),
        rows: Vec::new(),
    };
    for mode in &options.modes {
        let results = run("reusing", mode)?;
        let quality = edits.known().measure(&results.images, None)?;
        let row = Row {
            family: mode.family(),
            mode: mode.to_string(),
            computed: results.computed,
            flops: results.flops,
            fidelity: Fidelity::of(&results.images, &exact.images, perceptual)?,
            psnr: quality.psnr,
            nearest: quality.nearest,
        };
        above(format_args!(
            "{mode}: {:.1} dB to the exact run",
            row.fidelity.psnr.mean
        ));
        table.rows.push(row);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_written() {
        for (text, family) in [
            ("off", "off"),
            ("magcache:threshold=0.1", "magcache"),
            ("references", "references"),
            ("region:threshold=0.9", "region"),
            ("taylor:interval=4/references:every=7", "taylor/references"),
        ] {
            let mode: Mode = text.parse().unwrap();
            assert_eq!((mode.to_string().as_str(), mode.family().as_str()), (text, family));
        }
        assert_eq!("off".parse::<Mode>().unwrap(), Mode::EXACT);
        for text in ["none", "magcache/none", "references/magcache", ""] {
            assert!(text.parse::<Mode>().is_err(), "{text}");
        }
    }
}
