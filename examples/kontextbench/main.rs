//! Runs KontextBench: `cargo xtask run --release --example kontextbench -- --model DIR --bench DIR --out DIR`.
//!
//! docs/kontextbench.md describes how to get the bench, and how to shard a run, view it, vote, and let a command judge.

mod judging;
mod run;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{ArgGroup, Parser};
use kontext::{ReferenceReuse, Sampler, StepCache};
use kontext_bench::kontextbench::{Bench, Page, Problem, RunFolder, Shard, merge, read_votes, vote_report};
use kontext_cli::args::{LoadArgs, free_text, positive};
use kontext_cli::outputs::Outputs;
use kontext_cli::{announce, note, read, say, shipped, write};

/// Flags of a run, which the other modes of the program would ignore.
const OF_A_RUN: [&str; 33] = [
    "shard",
    "name",
    "embedder",
    "heads",
    "identity",
    "model",
    "lora",
    "lora_scale",
    "allow_unmatched",
    "allow_no_effect",
    "device",
    "dtype",
    "compute",
    "fp8_products",
    "attention",
    "threads",
    "no_kernels",
    "placement",
    "quantize",
    "quantize_t5",
    "transformer",
    "vae",
    "clip",
    "t5",
    "clip_tokenizer",
    "t5_tokenizer",
    "steps",
    "step_cache",
    "reference_reuse",
    "sampler",
    "shift",
    "guidance",
    "native_size",
];

/// Run KontextBench, merge its shards, show it, count votes, let a command judge.
#[derive(Debug, Parser)]
#[command(group(ArgGroup::new("judging").args(["score", "compare"])))]
struct Args {
    /// Folder of the bench: test/metadata.jsonl and images, as in black-forest-labs/kontext-bench
    #[arg(long, value_name = "DIR", required_unless_present = "votes")]
    bench: Option<PathBuf>,
    /// Folder of the run; the same command goes on with what is there. With --page, the page's file;
    /// with --compare, the file of the votes
    #[arg(long, value_name = "PATH", required_unless_present_any = ["check", "votes", "score"])]
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
    /// Let --judge score the edits of a run; its report shows the scores, next to published ones
    #[arg(
        long,
        value_name = "DIR",
        requires = "judge",
        conflicts_with_all = ["out", "check", "merge", "page", "votes", "seed"],
        conflicts_with_all = OF_A_RUN
    )]
    score: Option<PathBuf>,
    /// Let --judge vote between two runs; --votes counts its file
    #[arg(
        long,
        value_name = "DIR",
        num_args = 2,
        requires = "judge",
        conflicts_with_all = ["check", "merge", "page", "votes"],
        conflicts_with_all = OF_A_RUN
    )]
    compare: Vec<PathBuf>,
    /// The judge: a command that answers each line of JSON on its stdin by one on its stdout
    #[arg(long, value_name = "COMMAND", requires = "judging")]
    judge: Option<String>,
    /// Name of the judge in reports and votes; the command if not given
    #[arg(long, value_name = "NAME", requires = "judge", value_parser = free_text)]
    judge_name: Option<String>,
    /// Let the judge see each pair in both orders; verdicts that differ are a tie
    // A requirement that conflicts with a flag that is given is not asked for.
    #[arg(long, requires = "compare", conflicts_with = "score")]
    both_orders: bool,
    /// Maximum side of a page's images in pixels
    #[arg(long, value_name = "PIXELS", requires = "page")]
    thumbnails: Option<u32>,
    /// Maximum of pairs of each category: the first ones
    #[arg(long, value_name = "N", value_parser = positive::<usize>, allow_negative_numbers = true)]
    limit: Option<usize>,
    /// Seed: of the noise, of the left and right of a page or of --compare, of the intervals of Elo
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    run: OfARun,
    #[command(flatten)]
    model: ModelArgs,
}

/// Settings of a run, and of its metrics.
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
    /// A command that embeds images, such as a network for faces, for identity instead of --embedder: it answers each
    /// line of JSON on its stdin by one on its stdout
    #[arg(long, value_name = "COMMAND")]
    identity: Option<String>,
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
    /// Skip steps, at some loss: off, magcache, first-block, teacache or taylor; with parameters as in
    /// magcache:threshold=0.1,most_skips=5
    #[arg(long, value_name = "MODE", default_value_t)]
    step_cache: StepCache,
    /// Compute fewer tokens in some steps, at some loss: references or region; with parameters as in
    /// references:every=7 or region:threshold=0.9
    #[arg(long, value_name = "MODE")]
    reference_reuse: Option<ReferenceReuse>,
    /// Rule of a step: euler, consistency, heun or dpmpp_2m; that of the LoRA or the model if not given
    #[arg(long, value_name = "NAME")]
    sampler: Option<Sampler>,
    /// Fixed shift of the noise levels instead of the model's
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    shift: Option<f64>,
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
    if let Some(scored) = &args.score {
        return judging::score(args, &bench, scored);
    }
    let out = args.out.as_ref().context("--out names where to write")?;
    if let [a, b] = &args.compare[..] {
        return judging::compare(args, &bench, [a, b], out);
    }
    if !args.merge.is_empty() {
        let report = merge(&bench, &args.merge, out)?;
        return show(&report);
    }
    if !args.page.is_empty() {
        return write_page(args, &bench, out);
    }
    announce(&bench);
    run::run(args, &bench, out)
}

fn warn(problems: &[Problem]) {
    for problem in problems {
        note(format_args!("warning: {problem}"));
    }
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

/// Checks that a file to write is none of the bench or of the runs of a flag.
fn check_file(flag: &'static str, runs: &[PathBuf], bench: &Bench, out: &Path) -> anyhow::Result<()> {
    let mut outputs = Outputs::default();
    for run in runs {
        let read = ["run.json", "pictures", "records", "timings"];
        outputs.collection(flag, run, read.map(PathBuf::from));
    }
    outputs.collection("--bench", &bench.folder, run::files(bench));
    outputs.file("--out", out)
}

fn write_page(args: &Args, bench: &Bench, out: &Path) -> anyhow::Result<()> {
    let runs = args
        .page
        .iter()
        .map(RunFolder::open)
        .collect::<kontext::Result<Vec<_>>>()?;
    check_file("--page", &args.page, bench, out)?;
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
