//! Packed models from files, in each placement: step times, loading, and memory compared with the plan.

use std::rc::Rc;
use std::time::Instant;

use anyhow::bail;
use kontext::{Pipeline, Placement};

use super::big_file::{Files, Stored};
use super::shared::{WORKS, Work, request};
use super::timing::{marked, median};
use crate::device;
use crate::row::Outcome;
use crate::suite::Case;

/// Number of steps of a run; those after the first two are timed.
const STEPS: usize = 6;
/// Largest relative difference between the plan and the allocator's peak.
const PLAN: f64 = 0.05;

pub(super) fn cases(files: &Rc<Files>) -> Vec<Case<'static>> {
    let [edit, t2i, _] = WORKS;
    // Those of a goal come first.
    let all = [
        (edit, "fp8", Stored::Fp8, Placement::Staged),
        (t2i, "fp8", Stored::Fp8, Placement::Staged),
        (edit, "fp8", Stored::Fp8, Placement::Resident),
        (edit, "Q4_0", Stored::Q4_0, Placement::Resident),
        (edit, "fp8", Stored::Fp8, Placement::Streamed),
        (edit, "Q4_0", Stored::Q4_0, Placement::Staged),
        (edit, "Q4_0", Stored::Q4_0, Placement::Streamed),
    ];
    let case = |(work, name, stored, placement): (Work, &str, Stored, Placement)| {
        let files = Rc::clone(files);
        Case::new(format!("{}/kontext, {name} {placement}", work.name), move || {
            run(&files, work, stored, placement)
        })
    };
    all.into_iter().map(case).collect()
}

fn run(files: &Files, work: Work, stored: Stored, placement: Placement) -> anyhow::Result<Outcome> {
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
        .placement(placement)
        .encoding_cache(0);
    let pipe = builder.load(&model)?;
    device::synchronize(on)?;
    outcome.value("load_s", begun.elapsed().as_secs_f64());
    let request = request(work, &files.scale, STEPS);
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
