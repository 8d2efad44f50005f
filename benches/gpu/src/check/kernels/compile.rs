//! The time of compilation by NVRTC, and of code from the cache folder.

use std::path::Path;
use std::time::Instant;

use kontext::Device;
use kontext_kernels::Kernels;

use super::inputs::shape;
use crate::row::Outcome;

pub(super) fn times(sizes: [i64; 3], on: Device) -> anyhow::Result<Outcome> {
    if !on.is_cuda() {
        return Ok(Outcome::skipped("NVRTC compiles for a CUDA device"));
    }
    let (shape, folder) = (shape(sizes)?, tempfile::tempdir()?);
    let compile = |cache: Option<&Path>| -> anyhow::Result<f64> {
        let begun = Instant::now();
        drop(Kernels::compile(&shape, on, cache)?);
        Ok(begun.elapsed().as_secs_f64())
    };
    let mut outcome = Outcome::default();
    let cold = compile(Some(folder.path()))?;
    let files = std::fs::read_dir(folder.path())?.count();
    let cached = compile(Some(folder.path()))?;
    outcome.value("seconds", cold);
    outcome.value("seconds from the cache", cached);
    outcome.value("seconds without a cache", compile(None)?);
    outcome.holds(files == 1, || format!("{files} files are in the cache, not one"));
    outcome.holds(cached < cold, || "the cache saves no time".to_owned());
    Ok(outcome)
}
