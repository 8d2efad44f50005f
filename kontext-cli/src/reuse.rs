//! Quality of the modes of reuse between steps, on held-out edits.

use kontext::{Pipeline, StepCache};
use kontext_bench::metrics::Perceptual;
use kontext_bench::reuse::{Fidelity, Row, Table};

use crate::held_out::HeldOutEdits;
use crate::progress::above;

/// Choice of runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The modes.
    pub modes: Vec<StepCache>,
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
    let run = |label, mode: StepCache| {
        edits.run(pipe, label, edits.known().count(), |request, index| {
            let seed = options.seed.wrapping_add(index as u64);
            request.steps(options.steps).seed(seed).step_cache(mode)
        })
    };
    let exact = run("exact", StepCache::Off)?;
    let quality = edits.known().measure(&exact.images, None)?;
    let mut table = Table {
        steps: options.steps,
        psnr: quality.psnr,
        nearest: quality.nearest,
        pdist: perceptual.map(|perceptual| perceptual.name().to_owned()),
        rows: Vec::new(),
    };
    for mode in &options.modes {
        let results = run("reusing", *mode)?;
        let quality = edits.known().measure(&results.images, None)?;
        let name = mode.to_string();
        let row = Row {
            family: name.split(':').next().unwrap_or_default().to_owned(),
            mode: name,
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
