//! One run of the pipeline from options to files, for `edit` and `generate`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kontext::{Device, MemoryPlan, ModelSizes, Output, Pipeline, PipelineBuilder, Plan, Request, free_memory};

use crate::args::RunArgs;
use crate::dump::Dump;
use crate::interrupt::cancel_on_ctrl_c;
use crate::memory::{self, MemoryWatch};
use crate::program::{note, say};
use crate::{notes, progress, shipped};

const MEGABYTE: u64 = 1_000_000;
/// Seed of the weights of a model of the published size.
const RANDOM_SEED: u64 = 7;

/// Loads the model, runs the request and writes its images to `out` and numbered files next to it.
///
/// Returns `None` if only a plan was requested.
///
/// # Errors
/// If the model cannot be loaded, a file cannot be written, or the run fails or is cancelled by Ctrl-C.
pub fn run(args: &RunArgs, request: &Request, out: &Path) -> anyhow::Result<Option<Output>> {
    let builder = args.load.builder()?.fuse_loras(args.fuse_loras);
    let mut watch = None;
    let pipe = if args.full_size {
        note("This is a model of the published size with RANDOM weights, and its image will be noise.");
        builder.random(&ModelSizes::published(), RANDOM_SEED)?
    } else {
        let folder = args.model.clone().unwrap_or_else(shipped::model);
        // Errors in the request, and those that would come at the end, are reported before the weights are read.
        let plan = builder.plan(&folder, request)?;
        if args.plan {
            say(plan)?;
            print_memory_plan(&builder, &folder, request)?;
            return Ok(None);
        }
        check_outputs(args, &plan, out)?;
        watch = args.memory.then(|| (memory::anonymous(), MemoryWatch::start()));
        load(&builder, &folder)?
    };
    let plan = pipe.plan(request)?;
    if args.plan {
        say(plan)?;
        return Ok(None);
    }
    check_outputs(args, &plan, out)?;
    let begin = Instant::now();
    let output = observe(&pipe, request, args.dump.as_deref())?;
    for index in 0..output.images.len() {
        let path = numbered(out, index);
        output.save_image(index, &path)?;
        let seed = output.seed.wrapping_add(index as u64);
        say(format_args!(
            "wrote {} ({}, seed {seed})",
            path.display(),
            output.plan.output
        ))?;
    }
    let steps = output.plan.schedule.steps();
    say(format_args!(
        "{steps} steps and the rest took {:.1} s on {:?}",
        begin.elapsed().as_secs_f64(),
        pipe.device()
    ))?;
    if let (Some((before, watch)), Some(plan)) = (watch, pipe.memory(request)?) {
        print_memory(&plan, before, watch)?;
    }
    Ok(Some(output))
}

/// Returns the path of an image of a batch: "cat.png", "cat-1.png", "cat-2.png", …
#[must_use]
pub fn numbered(path: &Path, index: usize) -> PathBuf {
    if index == 0 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{index}.{extension}"))
}

/// Prints the memory that the run would take, and the device's free memory.
fn print_memory_plan(builder: &PipelineBuilder, folder: &Path, request: &Request) -> anyhow::Result<()> {
    let plans = builder.memory(folder, request)?;
    for plan in &plans {
        say(format_args!("memory:      {plan}"))?;
    }
    if let Some(first) = plans.first() {
        let free = free_memory(first.device)? / MEGABYTE;
        say(format_args!("free:        {free} MB"))?;
    }
    Ok(())
}

/// Prints the planned and the measured memory. `before` is what the process held before loading.
fn print_memory(plan: &MemoryPlan, before: u64, watch: MemoryWatch) -> anyhow::Result<()> {
    let Some(peak) = watch.stop() else {
        return Ok(());
    };
    let planned = plan.peak().1 + before;
    if plan.device != Device::Cpu {
        let host = peak.anonymous / MEGABYTE;
        return say(format_args!("{plan}\nmemory: {host} MB of the host taken"));
    }
    let percent = 100.0 * (planned as f64 / peak.anonymous as f64 - 1.0);
    say(format_args!("{plan}"))?;
    say(format_args!(
        "memory: {} MB planned ({} MB of the program itself included), {} MB taken ({percent:+.1} %), {} MB with pages of files",
        planned / MEGABYTE,
        before / MEGABYTE,
        peak.anonymous / MEGABYTE,
        peak.resident / MEGABYTE
    ))
}

fn check_outputs(args: &RunArgs, plan: &Plan, out: &Path) -> anyhow::Result<()> {
    kontext::io::check_writable(out)?;
    kontext::io::check_size(out, plan.output)?;
    args.dump.as_deref().map(kontext_core::check_writable).transpose()?;
    Ok(())
}

fn load(builder: &PipelineBuilder, folder: &Path) -> anyhow::Result<Pipeline> {
    let pipe = builder.load_with(folder, progress::loading())?;
    if let Some(checkpoint) = pipe.checkpoint() {
        note(checkpoint);
    }
    Ok(pipe)
}

/// Runs with a progress bar; Ctrl-C cancels after the step.
fn observe(pipe: &Pipeline, request: &Request, dump_to: Option<&Path>) -> anyhow::Result<Output> {
    let cancel = cancel_on_ctrl_c()?;
    let mut dump = dump_to.map(|path| (path, Dump::default()));
    let mut failed = None;
    let mut sampled = progress::sampling();
    let output = pipe.run_with(request, |event| {
        if let Some(Err(error)) = dump.as_mut().map(|(_, dump)| dump.observe(&event)) {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        match notes::of(&event) {
            Some(line) => note(line),
            None => sampled(&event),
        }
        cancel.check()
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    let output = output?;
    if let Some((path, dump)) = dump {
        dump.save(path)?;
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_after_the_first_have_a_number_before_their_extension() {
        let name = |index| numbered(Path::new("out/cat.png"), index);
        assert_eq!([name(0), name(2)], ["out/cat.png", "out/cat-2.png"].map(PathBuf::from));
    }
}
