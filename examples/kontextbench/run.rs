//! A run of the bench.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use kontext::{Checkpoint, Pipeline, Request};
use kontext_bench::kontextbench::{Bench, Edited, Metrics, RunEvent, RunInfo, Runner, Task};
use kontext_bench::metrics::Perceptual;
use kontext_cli::external_embedder::ExternalEmbedder;
use kontext_cli::interrupt::cancel_on_ctrl_c;
use kontext_cli::notes::Notes;
use kontext_cli::outputs::Outputs;
use kontext_cli::progress::{self, Reporter};
use kontext_cli::{announce, note, settings};

use super::{Args, ModelArgs, show};

/// Runs every pair of the shard that is not done, and shows the report if all are.
pub(super) fn run(args: &Args, bench: &Bench, out: &Path) -> anyhow::Result<()> {
    let cancel = cancel_on_ctrl_c()?;
    let builder = args.model.load.builder()?;
    check_folder(args, bench, &builder.checkpoint(&args.model.model)?, out)?;
    let pipe = builder.load_with(&args.model.model, progress::loading())?;
    let mut metrics = Metrics::default();
    if let Some(weights) = &args.run.embedder {
        metrics = metrics.perceptual(Perceptual::open(weights, args.run.heads.as_deref(), pipe.device())?);
    }
    if let Some(command) = &args.run.identity {
        metrics = metrics.embedder(ExternalEmbedder::start(command).context("--identity")?);
    }
    let (info, notes) = (info(args, &pipe)?, Notes::default());
    let edit = |task: &Task<'_>| {
        let mut request = Request::generate(&task.pair.instruction).seed(task.seed);
        request.images = task.images.iter().cloned().map(Arc::new).collect();
        request.steps = args.model.steps;
        request.step_cache = args.model.step_cache;
        request.reference_reuse = args.model.reference_reuse.clone();
        request.sampler = args.model.sampler;
        request.shift = args.model.shift;
        request.guidance = args.model.guidance;
        request.native_size = args.model.native_size;
        let output = pipe.run_with(&request, |event| {
            notes.observe(&task.pair.key, &event);
            cancel.check()
        })?;
        Ok(Edited {
            steps: output.plan.schedule.steps(),
            image: output.image,
        })
    };
    let mut reporter: Option<Reporter> = None;
    let mut done = 0;
    let watch = |event: RunEvent<'_>| -> ControlFlow<()> {
        match event {
            RunEvent::Started { done: before, total } => {
                if before > 0 {
                    note(format_args!(
                        "going on after {before} of {total} pairs in {}",
                        out.display()
                    ));
                }
                done = before;
                reporter = Some(Reporter::new("editing", total as u64).starting_at(before as u64));
            }
            RunEvent::Done { record, .. } => {
                done += 1;
                if let Some(reporter) = &mut reporter {
                    reporter.advance(done as u64, &record.key);
                }
            }
            RunEvent::Failed { problem } => {
                progress::above(format_args!("warning: {problem}"));
            }
            _ => {}
        }
        cancel.check()
    };
    let summary = Runner::new(bench, info)
        .shard(args.run.shard)
        .metrics(metrics)
        .run(out, edit, watch);
    if let Some(reporter) = reporter {
        reporter.clear();
    }
    let summary = match summary {
        Err(error) if error.is_cancelled() => bail!("stopped after {done} pairs; run the same command to go on"),
        summary => summary?,
    };
    match summary.report {
        Some(report) => show(&report),
        None if !summary.failed.is_empty() => {
            bail!(
                "{} pair(s) failed, told above; the same command tries them again",
                summary.failed.len()
            )
        }
        None => {
            announce(format_args!(
                "{} pairs of shard {} are done; {} of the bench are not here: other shards make them, --merge joins \
                 folders",
                summary.done, args.run.shard, summary.missing
            ));
            Ok(())
        }
    }
}

/// Returns the files of a bench that a run reads, relative to its folder.
pub(super) fn files(bench: &Bench) -> impl Iterator<Item = PathBuf> {
    let images = bench
        .pairs
        .iter()
        .flat_map(|pair| pair.images.iter().chain(&pair.truth).chain(&pair.candidates));
    images.cloned().chain([PathBuf::from("metadata.jsonl")])
}

/// Checks that the run's folder is none that the run reads.
fn check_folder(args: &Args, bench: &Bench, model: &Checkpoint, out: &Path) -> anyhow::Result<()> {
    let mut outputs = Outputs::default();
    args.model.load.inputs(model, &mut outputs)?;
    outputs.collection("--model", &model.folder, []);
    let networks = [("--embedder", &args.run.embedder), ("--heads", &args.run.heads)];
    for (flag, file) in networks {
        file.iter().for_each(|file| outputs.weights(flag, file));
    }
    if let Some(folder) = &args.bench {
        outputs.collection("--bench", folder, []);
    }
    outputs.collection("--bench", &bench.folder, files(bench));
    outputs.folder("--out", out)
}

/// Returns the settings that decide the results; a run is only continued with the same ones.
fn info(args: &Args, pipe: &Pipeline) -> anyhow::Result<RunInfo> {
    let ModelArgs {
        model,
        load,
        steps,
        step_cache,
        reference_reuse,
        sampler,
        shift,
        guidance,
        native_size,
    } = &args.model;
    let folder = model.canonicalize().unwrap_or_else(|_| model.clone());
    let folder_name = || {
        folder
            .file_name()
            .map_or("model".to_owned(), |name| name.to_string_lossy().into_owned())
    };
    let checkpoint = pipe.checkpoint().context("the pipeline was not loaded from a folder")?;
    let plan = pipe.plan(&Request::generate(""))?;
    let mut info = RunInfo::new(args.run.name.clone().unwrap_or_else(folder_name), args.seed);
    info.settings = settings::loading(load, checkpoint, pipe.device().is_cuda(), &plan)?;
    let mut optional = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            info.settings.insert(name.to_owned(), value);
        }
    };
    optional("native size", Some(native_size.to_string()));
    optional("steps", steps.map(|steps| steps.to_string()));
    optional("step cache", (!step_cache.is_off()).then(|| step_cache.to_string()));
    optional("reference reuse", reference_reuse.as_ref().map(ToString::to_string));
    optional("sampler", sampler.map(|sampler| sampler.to_string()));
    optional("shift", shift.map(|shift| shift.to_string()));
    optional("guidance", guidance.map(|guidance| guidance.to_string()));
    let networks: Vec<&PathBuf> = args.run.embedder.iter().chain(&args.run.heads).collect();
    optional(
        "networks",
        (!networks.is_empty())
            .then(|| kontext::file_digest(networks))
            .transpose()?,
    );
    Ok(info)
}
