//! Computes the table of few-step models: `cargo xtask run --release --example few_steps`.
//!
//! Runs held-out edits by a model and its students at several numbers of steps by several samplers, and compares
//! the results with the truth one by one and as distributions. The first run fetches the dataset.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use kontext::{Device, Sampler};
use kontext_bench::metrics::Features;
use kontext_cli::args::{LoadArgs, positive, whole};
use kontext_cli::few_steps::{Contender, Options, table};
use kontext_cli::held_out::SplitArgs;
use kontext_cli::outputs::Outputs;
use kontext_cli::{emoji, judge, save, say, shipped};

/// Measure a model and its few-step students on held-out edits.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the model, the students' teacher
    #[arg(long, value_name = "DIR", default_value_os_t = shipped::model())]
    model: PathBuf,
    /// A student: a LoRA on the model, a transformer or a model; may be given several times
    #[arg(long, value_name = "PATH")]
    student: Vec<PathBuf>,
    /// Leave the model itself out: measure the students only
    #[arg(long, requires = "student")]
    students_only: bool,
    /// Numbers of steps
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,2,4,20",
        value_parser = positive::<usize>,
        allow_negative_numbers = true
    )]
    steps: Vec<usize>,
    /// Samplers: euler, consistency, heun or dpmpp_2m. At one step all are the same, and the first is run
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "euler,consistency"
    )]
    samplers: Vec<Sampler>,
    #[command(flatten)]
    dataset: SplitArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Maximum of edits, taken evenly from those with one reference image
    #[arg(long, default_value_t = 256, value_parser = positive::<usize>, allow_negative_numbers = true)]
    most: usize,
    /// Seed of the first edit's noise
    #[arg(long, default_value_t = 0, value_parser = whole, allow_negative_numbers = true)]
    seed: u64,
    /// Edits that run a second time under another seed, for the column diversity
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole, allow_negative_numbers = true)]
    diverse: u64,
    /// Weights of a feature network, for the column KID
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,
    /// Compare all rows' KID, edit by edit, with the model's own at this number of steps, one of --steps
    #[arg(long, value_name = "STEPS", requires = "features", conflicts_with = "students_only", value_parser = positive::<usize>, allow_negative_numbers = true)]
    baseline: Option<usize>,
    /// Write the rows to this CSV file, at full precision
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the rows to this JSON file, at full precision
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(steps) = args.baseline.filter(|steps| !args.steps.contains(steps)) {
        bail!("--baseline {steps} is not one of --steps");
    }
    let builder = args.load.builder()?;
    let mut contenders = Vec::new();
    if !args.students_only {
        contenders.push(Contender {
            name: "teacher".to_owned(),
            model: args.model.clone(),
            builder: builder.clone(),
        });
    }
    for path in &args.student {
        contenders.push(Contender::student(path, &args.model, &builder)?);
    }
    let mut outputs = Outputs::default();
    args.load.inputs(&builder.checkpoint(&args.model)?, &mut outputs)?;
    for path in &args.student {
        outputs.weights("--student", path);
    }
    if let Some(path) = &args.features {
        outputs.read("--features", path);
    }
    outputs.collection("--data", &args.dataset.data, judge::files(&args.dataset.data));
    if let Some(path) = &args.csv {
        outputs.file("--csv", path)?;
    }
    if let Some(path) = &args.json {
        outputs.file("--json", path)?;
    }
    let features = args.features.as_deref();
    let features = features.map(|path| Features::open(path, Device::Cpu)).transpose()?;
    emoji::ensure(&args.dataset.data, None)?;
    let table = table(
        &contenders,
        &Options {
            data: args.dataset.data.clone(),
            split: args.dataset.split.clone(),
            most: args.most,
            steps: args.steps.clone(),
            samplers: args.samplers.clone(),
            seed: args.seed,
            diverse: args.diverse as usize,
            baseline: args.baseline,
        },
        features.as_ref(),
    )?;
    // The files are written also if the reader of stdout is gone.
    let said = say(format_args!("{table}"));
    if let Some(path) = &args.csv {
        save(path, &table.csv()?)?;
    }
    if let Some(path) = &args.json {
        save(path, &table.json()?)?;
    }
    said
}
