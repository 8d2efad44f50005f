//! Packed models from files, in each placement: step times, loading, and memory compared with the plan.

use std::rc::Rc;
use std::time::Instant;

use anyhow::bail;
use kontext::{Pipeline, Placement};

use super::big_file::{Files, Stored};
use super::shared::edit;
use super::timing::{marked, median};
use crate::device;
use crate::row::Outcome;
use crate::suite::Case;

/// Number of steps of a run; those after the first two are timed.
const STEPS: usize = 6;
/// Largest relative difference between the plan and the allocator's peak.
const PLAN: f64 = 0.05;

pub(super) fn cases(files: &Rc<Files>) -> Vec<Case<'static>> {
    let all = [
        ("Q4_0", Stored::Q4_0, Placement::Resident),
        ("Q4_0", Stored::Q4_0, Placement::Staged),
        ("Q4_0", Stored::Q4_0, Placement::Streamed),
        ("fp8", Stored::Fp8, Placement::Resident),
        ("fp8", Stored::Fp8, Placement::Streamed),
    ];
    let case = |(name, stored, placement): (&str, Stored, Placement)| {
        let files = Rc::clone(files);
        Case::new(format!("edit 1024/kontext, {name} {placement}"), move || {
            run(&files, stored, placement)
        })
    };
    all.into_iter().map(case).collect()
}

fn run(files: &Files, stored: Stored, placement: Placement) -> anyhow::Result<Outcome> {
    let on = files.device;
    let mut outcome = Outcome::default();
    let begun = Instant::now();
    let (model, transformer) = files.model(stored)?;
    outcome.value("written_s", begun.elapsed().as_secs_f64());
    let before = device::account(on)?.map_or(0, |account| account.allocated);
    device::reset_peak(on)?;
    let begun = Instant::now();
    let builder = Pipeline::builder()
        .device(on)
        .transformer(transformer)
        .placement(placement);
    let pipe = builder.load(&model)?;
    device::synchronize(on)?;
    outcome.value("load_s", begun.elapsed().as_secs_f64());
    let request = edit(files.scale.side(1024), STEPS);
    let begun = Instant::now();
    let (_, marks) = marked(on, &pipe, &request)?;
    outcome.value("run_s", begun.elapsed().as_secs_f64());
    let mut steps = marks
        .windows(2)
        .map(|pair| pair[0].until(&pair[1]))
        .collect::<anyhow::Result<Vec<f64>>>()?;
    if steps.len() + 1 != STEPS {
        bail!("{} steps of {STEPS}", steps.len() + 1);
    }
    outcome.value("ms", median(&mut steps[1..]));
    let plan = pipe.memory(&request)?;
    if let (Some(plan), Some(account)) = (plan, device::account(on)?) {
        let (stage, planned) = plan.peak();
        let taken = account.peak - before;
        outcome.value("peak_gb", taken as f64 / 1e9);
        outcome.value("planned_gb", planned as f64 / 1e9);
        outcome.value("planned stage", stage.to_string());
        // Memory that libtorch reserved on the device, including its cache.
        outcome.value("reserved_gb", account.reserved_peak as f64 / 1e9);
        outcome.at_most(
            "plan's distance from the peak",
            (planned as f64 / taken as f64 - 1.0).abs(),
            PLAN,
        );
    }
    Ok(outcome)
}
