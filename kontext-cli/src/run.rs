//! One run of the pipeline from options to files, for `edit` and `generate`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use kontext::io::Alpha;
use kontext::{Device, MemoryPlan, ModelSizes, Output, Pipeline, PipelineBuilder, Plan, Request, Size, free_memory};

use crate::args::RunArgs;
use crate::dump::Dump;
use crate::interrupt::cancel_on_ctrl_c;
use crate::memory::{self, MemoryWatch};
use crate::outputs::Outputs;
use crate::previews::PreviewDisplay;
use crate::program::{announce, note, say};
use crate::{notes, progress, shipped, strip};

const MEGABYTE: u64 = 1_000_000;
/// Seed of the weights of a model of the published size.
const RANDOM_SEED: u64 = 7;

/// Files of one run.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// The file of the first image.
    pub out: &'a Path,
    /// A file for the reference images and the first image in a row, which the caller writes.
    pub compare: Option<&'a Path>,
    /// The reference images' files.
    pub images: &'a [PathBuf],
    /// Transparency that the written images have.
    pub alpha: Option<&'a Alpha>,
}

impl<'a> Files<'a> {
    /// Returns the files of a generation.
    #[must_use]
    pub fn new(out: &'a Path) -> Self {
        Self {
            out,
            compare: None,
            images: &[],
            alpha: None,
        }
    }
}

/// Loads the model, runs the request and writes its images to `files.out` and numbered files next to it. Every name
/// is checked before the model is loaded.
///
/// Returns `None` if only a plan was requested.
///
/// # Errors
/// If the model cannot be loaded, a file cannot be written or would replace another that it must not, or the run
/// fails or is cancelled by Ctrl-C.
pub fn run(args: &RunArgs, request: &Request, files: &Files<'_>) -> anyhow::Result<Option<Output>> {
    let builder = args.previews.builder(args.load.builder()?.fuse_loras(args.fuse_loras));
    let folder = args.model.clone().unwrap_or_else(shipped::model);
    if args.plan {
        let previews = &args.previews;
        for (flag, given) in [
            ("--dump", args.dump.is_some()),
            ("--memory", args.memory),
            ("--preview", previews.preview.is_some()),
            ("--preview-terminal", previews.preview_terminal),
        ] {
            if given {
                note(format_args!(
                    "warning: {flag} has no effect with --plan; leave one of them out"
                ));
            }
        }
    } else {
        check_names(args, request, files, &folder)?;
    }
    let mut watch = None;
    let pipe = if args.full_size {
        note("This is a model of the published size with RANDOM weights, and its image will be noise.");
        builder.random(&ModelSizes::published(), RANDOM_SEED)?
    } else {
        // Errors in the request, and those that would come at the end, are reported before the weights are read.
        let plan = builder.plan(&folder, request)?;
        if args.plan {
            say(plan)?;
            print_memory_plan(&builder, &folder, request)?;
            return Ok(None);
        }
        check_sizes(request, &plan, files)?;
        watch = args.memory.then(|| (memory::anonymous(), MemoryWatch::start()));
        load(&builder, &folder)?
    };
    let plan = pipe.plan(request)?;
    if args.plan {
        say(plan)?;
        return Ok(None);
    }
    check_sizes(request, &plan, files)?;
    let begin = Instant::now();
    let (output, dump) = observe(&pipe, request, args.dump.is_some(), args.previews.display())?;
    // The dump is written also if an image is not, and the other way round.
    let saved = save(&output, files);
    if let Some(path) = &args.dump {
        dump?.save(path)?;
    }
    saved?;
    let steps = output.plan.schedule.steps();
    announce(format_args!(
        "{steps} steps and the rest took {:.1} s on {:?}",
        begin.elapsed().as_secs_f64(),
        pipe.device()
    ));
    if let (Some((before, watch)), Some(plan)) = (watch, pipe.memory(request)?) {
        print_memory(&plan, before, watch)?;
    }
    Ok(Some(output))
}

/// Writes all images of which the files can be written.
fn save(output: &Output, files: &Files<'_>) -> anyhow::Result<()> {
    let (mut failed, total) = (Vec::new(), output.images.len());
    for index in 0..total {
        let path = numbered(files.out, index);
        let seed = output.seed.wrapping_add(index as u64);
        let saved = match files.alpha {
            Some(alpha) => output.save_transparent(index, alpha, &path),
            None => output.save_image(index, &path),
        };
        match saved {
            Ok(()) => announce(format_args!(
                "wrote {} ({}, seed {seed})",
                path.display(),
                output.plan.output
            )),
            Err(error) => failed.push(error),
        }
    }
    let count = failed.len();
    match failed.into_iter().next() {
        None => Ok(()),
        Some(error) if total == 1 => Err(error.into()),
        Some(error) => Err(error).with_context(|| format!("cannot write {count} of {total} images")),
    }
}

/// Returns the path of an image of a batch: "cat.png", "cat-1.png", "cat-2.png", …
#[must_use]
pub fn numbered(path: &Path, index: usize) -> PathBuf {
    if index == 0 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{index}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
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

/// Checks the names of all files that a run writes.
fn check_names(args: &RunArgs, request: &Request, files: &Files<'_>, folder: &Path) -> anyhow::Result<()> {
    let mut outputs = Outputs::overwriting(args.overwrite);
    let loras = args.load.lora_files()?;
    let lists = [("--image", files.images), ("--lora", &loras[..])];
    for (flag, paths) in lists {
        paths.iter().for_each(|path| outputs.read(flag, path));
    }
    if let Some(noise) = &args.noise {
        outputs.read("--noise", noise);
    }
    if let Ok(model) = args.load.parts.apply(Pipeline::builder()).checkpoint(folder) {
        outputs.model("--model", &model);
    }
    outputs.image("--out", files.out)?;
    if let Some(path) = &args.dump {
        outputs.file("--dump", path)?;
    }
    if let Some(path) = &args.previews.preview {
        outputs.image("--preview", path)?;
    }
    if let Some(path) = files.compare {
        outputs.image("--compare", path)?;
    }
    let others: Vec<PathBuf> = (1..request.batch).map(|index| numbered(files.out, index)).collect();
    outputs.numbered("--batch", &others)
}

/// Checks that the formats of the image files take the images' sizes.
fn check_sizes(request: &Request, plan: &Plan, files: &Files<'_>) -> anyhow::Result<()> {
    kontext::io::check_size(files.out, plan.output)?;
    let Some(compare) = files.compare else { return Ok(()) };
    let references = request
        .images
        .iter()
        .map(|image| Size::new(image.width(), image.height()));
    let (_, row) = strip::row_size(references.chain([plan.output]), plan.output.height)?;
    Ok(kontext::io::check_size(compare, row)?)
}

fn load(builder: &PipelineBuilder, folder: &Path) -> anyhow::Result<Pipeline> {
    let pipe = builder.load_with(folder, progress::loading())?;
    if let Some(checkpoint) = pipe.checkpoint() {
        checkpoint.to_string().lines().for_each(note);
    }
    Ok(pipe)
}

/// Runs with a progress bar; Ctrl-C cancels after the step. A failure to copy the tensors for a dump does not stop
/// the run.
fn observe(
    pipe: &Pipeline,
    request: &Request,
    dumps: bool,
    mut previews: PreviewDisplay,
) -> anyhow::Result<(Output, kontext::Result<Dump>)> {
    let cancel = cancel_on_ctrl_c()?;
    let mut dump = Ok(Dump::default());
    let mut sampled = progress::sampling();
    let output = pipe.run_with(request, |event| {
        let copied = dump.as_mut().ok().filter(|_| dumps).map(|dump| dump.observe(&event));
        if let Some(Err(error)) = copied {
            dump = Err(error);
        }
        previews.observe(&event);
        match notes::of(&event) {
            Some(line) => note(line),
            None => sampled(&event),
        }
        cancel.check()
    })?;
    Ok((output, dump))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_after_the_first_have_a_number_before_their_extension() {
        let name = |index| numbered(Path::new("out/cat.png"), index);
        assert_eq!([name(0), name(2)], ["out/cat.png", "out/cat-2.png"].map(PathBuf::from));
    }

    #[cfg(unix)]
    #[test]
    fn a_name_that_is_not_utf_8_is_kept_byte_for_byte() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let path = |bytes: &'static [u8]| Path::new(OsStr::from_bytes(bytes));
        assert_eq!(numbered(path(b"out/caf\xe9.png"), 1), path(b"out/caf\xe9-1.png"));
    }
}
