//! From flags to files: what `edit` and `generate` do alike.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kontext::crates::kontext_core;
use kontext::{Builder, Cancel, Event, MemoryPlan, ModelSizes, Output, Pipeline, Plan, Request, free_memory};

use super::args::RunArgs;
use super::dump::Dump;
use super::{SHIPPED, memory, progress, say};

const MEGABYTE: u64 = 1_000_000;
/// Seed of the weights of a model of the published size.
const RANDOM_SEED: u64 = 7;

/// Loads the model, runs the request, writes the pictures. Returns nothing where only a plan was asked for.
pub fn run(args: &RunArgs, request: &Request, out: &Path) -> anyhow::Result<Option<Output>> {
    let builder = args.load.builder()?.fuse_loras(args.fuse_loras);
    let mut watch = None;
    let pipe = if args.full_size {
        eprintln!("This is a model of the published size with RANDOM weights, and its picture will be noise.");
        builder.random(&ModelSizes::published(), RANDOM_SEED)?
    } else {
        let folder = args.model.clone().unwrap_or_else(|| SHIPPED.into());
        // What is wrong with the request or fails at the end is told before the weights are read.
        let plan = builder.plan(&folder, request)?;
        if args.plan {
            say(plan)?;
            let memory = builder.memory(&folder, request)?;
            for memory in &memory {
                say(format_args!("memory:      {memory}"))?;
            }
            if let Some(first) = memory.first() {
                say(format_args!(
                    "free:        {} MB",
                    free_memory(first.device)? / MEGABYTE
                ))?;
            }
            return Ok(None);
        }
        check_outputs(args, &plan, out)?;
        watch = args.memory.then(|| (memory::own(), memory::Watch::start()));
        load(&builder, &folder)?
    };
    let plan = pipe.plan(request)?;
    if args.plan {
        say(plan)?;
        return Ok(None);
    }
    check_outputs(args, &plan, out)?;
    for warning in plan.warnings() {
        eprintln!("warning: {warning}");
    }
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
        tell_memory(&plan, before, watch)?;
    }
    Ok(Some(output))
}

/// What was planned beside what was taken.
fn tell_memory(plan: &MemoryPlan, before: u64, watch: memory::Watch) -> anyhow::Result<()> {
    let Some((own, with_files)) = watch.stop() else {
        return Ok(());
    };
    let planned = plan.peak().1 + before;
    if plan.device != kontext::Device::Cpu {
        return say(format_args!("{plan}\nmemory: {} MB of the host taken", own / MEGABYTE));
    }
    let percent = 100.0 * (planned as f64 / own as f64 - 1.0);
    say(format_args!("{plan}"))?;
    say(format_args!(
        "memory: {} MB planned ({} MB of the program itself included), {} MB taken ({percent:+.1} %), {} MB with pages of files",
        planned / MEGABYTE,
        before / MEGABYTE,
        own / MEGABYTE,
        with_files / MEGABYTE
    ))
}

fn check_outputs(args: &RunArgs, plan: &Plan, out: &Path) -> anyhow::Result<()> {
    kontext::check_writable(out)?;
    kontext::check_size(out, plan.output)?;
    args.dump.as_deref().map(kontext_core::check_writable).transpose()?;
    Ok(())
}

fn load(builder: &Builder, folder: &Path) -> anyhow::Result<Pipeline> {
    let pipe = builder.load_with(folder, progress::loading())?;
    if let Some(checkpoint) = pipe.checkpoint() {
        eprintln!("{checkpoint}");
    }
    Ok(pipe)
}

/// Runs with a progress bar; Ctrl-C stops after the step.
fn observe(pipe: &Pipeline, request: &Request, dump_to: Option<&Path>) -> anyhow::Result<Output> {
    let cancel = Cancel::new();
    let remote = cancel.clone();
    ctrlc::set_handler(move || remote.cancel())?;
    let (mut dump, mut failed, mut sampled) = (dump_to.map(|_| Dump::default()), None, progress::sampling());
    let output = pipe.run_with(request, |event| {
        if let Some(Err(error)) = dump.as_mut().map(|d| d.observe(&event)) {
            failed = Some(error);
            return ControlFlow::Break(());
        }
        match event {
            Event::Cut { cut } => {
                eprintln!(
                    "{} does not see the end of the prompt: “{}”",
                    cut.encoder,
                    shortened(&cut.text)
                );
            }
            event => sampled(&event),
        }
        cancel.check()
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    let output = output?;
    if let (Some(dump), Some(path)) = (dump, dump_to) {
        dump.save(path)?;
    }
    Ok(output)
}

/// The first part of a long text.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    let text = text.trim();
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain("…".chars()).collect()
    }
}

/// "cat.png", "cat-1.png", "cat-2.png", …
pub fn numbered(path: &Path, index: usize) -> PathBuf {
    if index == 0 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{index}.{extension}"))
}
