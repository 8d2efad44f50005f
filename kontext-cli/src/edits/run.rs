//! A run of many edits from options to files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kontext::{PipelineBuilder, Request};
use kontext_bench::kontextbench::Problem;

use super::facts::Facts;
use super::inventory::Inventory;
use super::journal::records;
use super::list::{Defaults, Listed, list};
use super::planner::Planner;
use super::runner::{Outcome, Runner};
use super::workspace::Workspace;
use super::{EditsArgs, Source};
use crate::args::{self, RunArgs};
use crate::interrupt::cancel_on_ctrl_c;
use crate::outputs::Outputs;
use crate::program::{announce, note, say};
use crate::{progress, settings, shipped};

/// Makes all edits of a source that are not in the folder `out`, which is created if absent. Edits that cannot be made,
/// and those that fail, are listed at the end and left out.
///
/// # Errors
/// If an edit cannot be made or fails; before any work, if a flag is of one edit only, the manifest cannot be read, the
/// folder has results of other options that are not to be replaced, or the model cannot be loaded.
pub fn run(
    source: &Source,
    run: &RunArgs,
    edits: &EditsArgs,
    defaults: Defaults<'_>,
    out: &Path,
) -> anyhow::Result<()> {
    check_flags(run)?;
    let there = records(out)?;
    let Listed {
        mut jobs,
        mut problems,
        read,
    } = list(source, edits, defaults, out, &there)?;
    let builder = run.load.builder()?.fuse_loras(run.fuse_loras);
    let model = run.model.clone().unwrap_or_else(shipped::model);
    check_folder(run, edits, read, &builder, &model, out)?;
    let mut planner = Planner::new(&builder, &model);
    // Faults of the model and the options are no edit's.
    let plan = builder.plan(&model, &Request::generate(""))?;
    jobs.retain_mut(|job| match planner.plan(job) {
        Ok(_) => true,
        Err(what) => {
            problems.push(job.problem(what));
            false
        }
    });
    problems.sort_by_key(|problem| problem.line);
    for problem in &problems {
        note(format_args!("warning: {problem}; it is left out"));
    }
    let total = jobs.len() + problems.len();
    if jobs.is_empty() && total > 0 {
        bail!("none of the {total} edits can be made, for the reasons above");
    }
    if run.plan {
        say(format_args!("{} edits", jobs.len()))?;
        if let Some(first) = jobs.first_mut() {
            let plan = planner.plan(first).map_err(anyhow::Error::msg)?;
            say(format_args!("the first, {}:\n{plan}", first.key))?;
        }
        return end(&problems, total);
    }
    let is_cuda = args::device(run.load.device.as_deref())?.is_cuda();
    let mut settings = settings::loading(&run.load, &builder.checkpoint(&model)?, is_cuda, &plan)?;
    settings.extend(own_settings(run)?);
    let (seed, overwrite) = (defaults.request.seed, run.overwrite);
    let expected = Facts::expected(out, seed, &settings, overwrite)?;
    let mut inventory = Inventory::new(&jobs, out, &there, &expected)?;
    if !overwrite {
        inventory.check(out)?;
    }
    let mut workspace = Workspace::open(out, edits.shard)?;
    let facts = expected.clone().settle(&mut workspace, out, seed, overwrite)?;
    if facts != expected {
        inventory = Inventory::new(&jobs, out, &there, &facts)?;
    }
    let Inventory { missing, done, .. } = inventory;
    if done > 0 {
        note(format_args!("{done} of {} edits are in {}", jobs.len(), out.display()));
    }
    let mut outcome = Outcome::default();
    if !missing.is_empty() {
        let cancel = cancel_on_ctrl_c()?;
        let pipe = builder.load_with(&model, progress::loading())?;
        let runner = Runner {
            pipe: &pipe,
            facts: &facts,
            records: &there,
            cancel: &cancel,
        };
        outcome = runner.run(&missing, done, &mut workspace)?;
    }
    drop(workspace);
    announce(format_args!(
        "made {} edits in {}, {done} were there",
        outcome.made,
        out.display()
    ));
    problems.extend(outcome.failed);
    if outcome.stopped {
        list_failures(&problems);
        bail!(
            "stopped after {} of {total} edits; the same command goes on",
            done + outcome.made
        );
    }
    end(&problems, total)
}

/// Lists the edits without a result; an error if there are any.
fn end(problems: &[Problem], total: usize) -> anyhow::Result<()> {
    list_failures(problems);
    if problems.is_empty() {
        return Ok(());
    }
    bail!(
        "{} of {total} edits have no result, for the reasons above; the same command tries them again",
        problems.len()
    )
}

fn list_failures(problems: &[Problem]) {
    for problem in problems {
        note(format_args!("failed: {problem}"));
    }
}

/// Checks that no flag is given that is of one edit only.
fn check_flags(run: &RunArgs) -> anyhow::Result<()> {
    let of_one = [
        ("--full-size", run.full_size),
        ("--dump", run.dump.is_some()),
        ("--memory", run.memory),
    ];
    for (flag, given) in of_one {
        if given {
            bail!("{flag} is of one edit; leave it out with a folder, a pattern or a manifest");
        }
    }
    Ok(())
}

/// Checks that the folder of the results is none that the run reads.
fn check_folder(
    run: &RunArgs,
    edits: &EditsArgs,
    read: Option<(PathBuf, Vec<PathBuf>)>,
    builder: &PipelineBuilder,
    model: &Path,
    out: &Path,
) -> anyhow::Result<()> {
    if out.exists() && !out.is_dir() {
        bail!("--out {} is a file; name the folder of the results", out.display());
    }
    let mut outputs = Outputs::default();
    run.load.inputs(&builder.checkpoint(model)?, &mut outputs)?;
    outputs.collection("--model", model, []);
    if let Some((folder, files)) = read {
        outputs.collection("--image", &folder, files);
    }
    if let Some(manifest) = &edits.manifest {
        outputs.read("--manifest", manifest);
    }
    for path in run.noise.iter().chain(&edits.reference) {
        check_readable(path)?;
    }
    outputs.folder("--out", out)
}

/// Checks that a file of all edits exists.
fn check_readable(path: &Path) -> anyhow::Result<()> {
    std::fs::metadata(path)
        .map(drop)
        .with_context(|| format!("cannot read {}", path.display()))
}

/// Returns the settings of a run that are neither the loading's nor in a request.
fn own_settings(run: &RunArgs) -> anyhow::Result<BTreeMap<String, String>> {
    let mut settings = BTreeMap::new();
    if run.fuse_loras {
        settings.insert("fused loras".to_owned(), "true".to_owned());
    }
    if let Some(noise) = &run.noise {
        settings.insert("noise".to_owned(), kontext::file_digest([noise])?);
    }
    Ok(settings)
}
