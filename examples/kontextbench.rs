//! Runs KontextBench: `cargo xtask run --release --example kontextbench -- --model DIR --bench DIR --out DIR`.
//!
//! docs/kontextbench.md describes how to get the bench, and how to shard a run, view it and vote.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use kontext::{Checkpoint, Pipeline, Request};
use kontext_bench::kontextbench::{
    Bench, Edited, Metrics, Page, Problem, RunEvent, RunFolder, RunInfo, Runner, Shard, Task, merge, read_votes,
    vote_report,
};
use kontext_bench::metrics::Perceptual;
use kontext_cli::args::{LoadArgs, free_text, positive};
use kontext_cli::interrupt::cancel_on_ctrl_c;
use kontext_cli::notes::Notes;
use kontext_cli::outputs::Outputs;
use kontext_cli::progress::{self, Reporter};
use kontext_cli::{announce, identity, note, read, say, shipped, write};

/// Groups of flags of a run, which the other modes of the program would ignore.
const OF_A_RUN: [&str; 4] = ["OfARun", "ModelArgs", "LoadArgs", "PartArgs"];

/// Run KontextBench, merge its shards, show it, count votes.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the bench: test/metadata.jsonl and images, as in black-forest-labs/kontext-bench
    #[arg(long, value_name = "DIR", required_unless_present = "votes")]
    bench: Option<PathBuf>,
    /// Folder of the run; the same command goes on with what is there. With --page, the page's file
    #[arg(long, value_name = "PATH", required_unless_present_any = ["check", "votes"])]
    out: Option<PathBuf>,
    /// Read the bench, print its faults, and stop
    #[arg(
        long,
        conflicts_with_all = ["merge", "page", "votes", "out", "seed"],
        conflicts_with_all = OF_A_RUN
    )]
    check: bool,
    /// Merge shards from separate folders
    #[arg(
        long,
        value_name = "DIR",
        num_args = 1..,
        conflicts_with_all = ["page", "votes", "seed"],
        conflicts_with_all = OF_A_RUN
    )]
    merge: Vec<PathBuf>,
    /// Write a page of one run, or of two to vote between
    #[arg(long, value_name = "DIR", num_args = 1..=2, conflicts_with = "votes", conflicts_with_all = OF_A_RUN)]
    page: Vec<PathBuf>,
    /// Count the votes that pages have exported: win rates and Elo
    #[arg(
        long,
        value_name = "FILE",
        num_args = 1..,
        conflicts_with_all = ["bench", "out", "limit"],
        conflicts_with_all = OF_A_RUN
    )]
    votes: Vec<PathBuf>,
    /// Maximum side of a page's images in pixels
    #[arg(long, value_name = "PIXELS", requires = "page")]
    thumbnails: Option<u32>,
    /// Maximum of pairs of each category: the first ones
    #[arg(long, value_name = "N", value_parser = positive::<usize>, allow_negative_numbers = true)]
    limit: Option<usize>,
    /// Seed: of the noise, of a page's left and right, of the intervals of Elo
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    run: OfARun,
    #[command(flatten)]
    model: ModelArgs,
}

/// What a run is, and what it measures.
#[derive(Debug, clap::Args)]
struct OfARun {
    /// Run every pair whose index is i modulo n; the shards' folder may be one or several
    #[arg(long, value_name = "I/N", default_value_t)]
    shard: Shard,
    /// Name of the run; that of the model's folder if not given
    #[arg(long, allow_hyphen_values = true, value_parser = free_text)]
    name: Option<String>,
    /// A network's weights (AlexNet, VGG 16 or SqueezeNet 1.1) for distance and identity
    #[arg(long, value_name = "FILE")]
    embedder: Option<PathBuf>,
    /// LPIPS's weights of that network's layers; plain distances of features without them
    #[arg(long, value_name = "FILE", requires = "embedder")]
    heads: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct ModelArgs {
    /// Folder of the model
    #[arg(long, value_name = "DIR", default_value_os_t = shipped::model())]
    model: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
    /// Sampling steps
    #[arg(long, value_parser = positive::<usize>, allow_negative_numbers = true)]
    steps: Option<usize>,
    /// Guidance value
    #[arg(long, allow_negative_numbers = true)]
    guidance: Option<f64>,
    /// Keep the size that the model worked at, instead of the source's
    #[arg(long)]
    native_size: bool,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    if !args.votes.is_empty() {
        return count_votes(args);
    }
    let mut bench = Bench::open(args.bench.as_ref().context("--bench names the bench's folder")?)?;
    if let Some(most) = args.limit {
        bench = bench.limit(most);
    }
    warn(&bench.problems);
    if args.check {
        say(&bench)?;
        if bench.problems.is_empty() {
            return Ok(());
        }
        bail!("the bench has {} fault(s), listed above", bench.problems.len());
    }
    let out = args.out.as_ref().context("--out names where to write")?;
    if !args.merge.is_empty() {
        let report = merge(&bench, &args.merge, out)?;
        return show(&report);
    }
    if !args.page.is_empty() {
        return write_page(args, &bench, out);
    }
    announce(&bench);
    run_bench(args, &bench, out)
}

fn warn(problems: &[Problem]) {
    for problem in problems {
        note(format_args!("warning: {problem}"));
    }
}

fn run_bench(args: &Args, bench: &Bench, out: &Path) -> anyhow::Result<()> {
    let cancel = cancel_on_ctrl_c()?;
    let builder = args.model.load.builder()?;
    check_folder(args, bench, &builder.checkpoint(&args.model.model)?, out)?;
    let pipe = builder.load_with(&args.model.model, progress::loading())?;
    let mut metrics = Metrics::default();
    if let Some(weights) = &args.run.embedder {
        metrics = metrics.perceptual(Perceptual::open(weights, args.run.heads.as_deref(), pipe.device())?);
    }
    let (info, notes) = (info(args, &pipe)?, Notes::default());
    let edit = |task: &Task<'_>| {
        let mut request = Request::generate(&task.pair.instruction).seed(task.seed);
        request.images = task.images.iter().cloned().map(Arc::new).collect();
        request.steps = args.model.steps;
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
                let line = format!("warning: {problem}");
                match &reporter {
                    Some(reporter) => reporter.println(&line),
                    None => note(line),
                }
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

/// Checks that the run's folder is none that the run reads.
fn check_folder(args: &Args, bench: &Bench, model: &Checkpoint, out: &Path) -> anyhow::Result<()> {
    let mut outputs = Outputs::default();
    outputs.model("--model", model);
    outputs.read("--model", &model.folder);
    for folder in args.bench.iter().chain([&bench.folder]) {
        outputs.read("--bench", folder);
    }
    outputs.folder("--out", out)
}

/// Returns the settings that decide the results; a run is only continued with the same ones.
fn info(args: &Args, pipe: &Pipeline) -> anyhow::Result<RunInfo> {
    let ModelArgs {
        model,
        load,
        steps,
        guidance,
        native_size,
    } = &args.model;
    let LoadArgs {
        lora_scale,
        dtype,
        quantize,
        quantize_t5,
        ..
    } = load;
    let folder = model.canonicalize().unwrap_or_else(|_| model.clone());
    let folder_name = || {
        folder
            .file_name()
            .map_or("model".to_owned(), |name| name.to_string_lossy().into_owned())
    };
    let checkpoint = pipe.checkpoint().context("the pipeline was not loaded from a folder")?;
    let mut info = RunInfo::new(args.run.name.clone().unwrap_or_else(folder_name), args.seed)
        .setting("kontext", env!("CARGO_PKG_VERSION"))
        .setting("model", identity::of_model(checkpoint, &load.lora_files()?)?)
        .setting("device", if pipe.device().is_cuda() { "cuda" } else { "cpu" })
        .setting("native size", native_size.to_string());
    let mut optional = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            info.settings.insert(name.to_owned(), value);
        }
    };
    optional("steps", steps.map(|steps| steps.to_string()));
    optional("guidance", guidance.map(|guidance| guidance.to_string()));
    optional("dtype", dtype.map(|dtype| format!("{dtype:?}").to_lowercase()));
    optional("quantize", quantize.map(|to| to.to_string()));
    optional("quantize t5", quantize_t5.map(|to| to.to_string()));
    // Named as the option was before `--lora-scale`: earlier runs can be continued.
    optional(
        "lora strengths",
        (!lora_scale.is_empty()).then(|| format!("{lora_scale:?}")),
    );
    let networks: Vec<&PathBuf> = args.run.embedder.iter().chain(&args.run.heads).collect();
    optional(
        "networks",
        (!networks.is_empty())
            .then(|| identity::of_files(networks))
            .transpose()?,
    );
    Ok(info)
}

/// Prints a report and the path of its page.
fn show(report: &Path) -> anyhow::Result<()> {
    announce(read(report)?);
    let latency = report.with_file_name("timings").join("latency.md");
    if latency.is_file() {
        announce(read(&latency)?);
    }
    announce(format_args!(
        "wrote {} and {}",
        report.display(),
        report.with_file_name("page.html").display()
    ));
    Ok(())
}

fn write_page(args: &Args, bench: &Bench, out: &Path) -> anyhow::Result<()> {
    let runs = args
        .page
        .iter()
        .map(RunFolder::open)
        .collect::<kontext::Result<Vec<_>>>()?;
    let mut outputs = Outputs::default();
    args.page.iter().for_each(|run| outputs.read("--page", run));
    outputs.read("--bench", &bench.folder);
    outputs.file("--out", out)?;
    let mut page = match &runs[..] {
        [a, b] => Page::between(bench, a, b),
        [a, ..] => Page::of(bench, a),
        [] => bail!("--page takes one run or two"),
    };
    if let Some(side) = args.thumbnails {
        page = page.thumbnails(side);
    }
    let html = page.seed(args.seed).html()?;
    write(out, &html)?;
    announce(format_args!("wrote {} ({} kB)", out.display(), html.len() / 1000));
    Ok(())
}

fn count_votes(args: &Args) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for path in &args.votes {
        let (votes, problems) = read_votes(path)?;
        warn(&problems);
        all.extend(votes);
    }
    if all.is_empty() {
        bail!("there is no vote to count; expected lines of key, category, left, right, choice, time");
    }
    say(vote_report(&all, args.seed))
}
