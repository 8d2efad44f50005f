//! Computes the curve of quality against computed operations: `cargo xtask run --release --example reuse`.
//!
//! Runs held-out edits exactly and by each mode of reuse between steps, and compares the results: the table and the
//! curve of docs/reuse.md. The first run fetches the dataset.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kontext::Device;
use kontext_bench::metrics::Perceptual;
use kontext_bench::reuse::plot;
use kontext_cli::args::{LoadArgs, positive, whole};
use kontext_cli::held_out::{HeldOutEdits, SplitArgs};
use kontext_cli::outputs::Outputs;
use kontext_cli::reuse::{Mode, Options, table};
use kontext_cli::{emoji, judge, save, say, shipped};

/// The modes that are compared by default: each by its published defaults, and by others.
const MODES: [&str; 21] = [
    "magcache:threshold=0.02",
    "magcache:threshold=0.03",
    "magcache",
    "magcache:threshold=0.1,most_skips=5",
    "taylor:interval=2",
    "taylor:interval=3",
    "taylor:interval=4",
    "taylor",
    "first-block:threshold=0.02",
    "first-block",
    "first-block:threshold=0.08",
    "first-block:threshold=0.12",
    "teacache:threshold=0.05",
    "teacache:threshold=0.1",
    "teacache",
    "teacache:threshold=0.4",
    "references",
    "references:every=7",
    "magcache/references",
    "region",
    "region:error=0",
];

/// Compare runs that reuse results between steps with the exact run.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the model
    #[arg(long, value_name = "DIR", default_value_os_t = shipped::model())]
    model: PathBuf,
    /// A mode with its parameters: a step cache, a reuse of references, or both, such as magcache:threshold=0.1/references;
    /// may be given several times. Without it, all modes
    #[arg(long, value_name = "MODE")]
    mode: Vec<Mode>,
    /// Sampling steps
    #[arg(long, default_value_t = 28, value_parser = positive::<usize>, allow_negative_numbers = true)]
    steps: usize,
    #[command(flatten)]
    dataset: SplitArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Maximum of edits, taken evenly from those with one reference image
    #[arg(long, default_value_t = 128, value_parser = positive::<usize>, allow_negative_numbers = true)]
    most: usize,
    /// Seed of the first edit's noise
    #[arg(long, default_value_t = 0, value_parser = whole, allow_negative_numbers = true)]
    seed: u64,
    /// Weights of a feature network, for the column PDist
    #[arg(long, value_name = "FILE")]
    perceptual: Option<PathBuf>,
    /// Write the rows to this CSV file, at full precision
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the curves to this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let builder = args.load.builder()?;
    let modes = if args.mode.is_empty() {
        MODES
            .iter()
            .map(|mode| mode.parse())
            .collect::<kontext::Result<Vec<_>>>()?
    } else {
        args.mode.clone()
    };
    let mut outputs = Outputs::default();
    args.load.inputs(&builder.checkpoint(&args.model)?, &mut outputs)?;
    if let Some(path) = &args.perceptual {
        outputs.read("--perceptual", path);
    }
    outputs.collection("--data", &args.dataset.data, judge::files(&args.dataset.data));
    if let Some(path) = &args.csv {
        outputs.file("--csv", path)?;
    }
    if let Some(path) = &args.plot {
        outputs.file("--plot", path)?;
    }
    let perceptual = args.perceptual.as_deref();
    let perceptual = perceptual
        .map(|path| Perceptual::open(path, None, Device::Cpu))
        .transpose()?;
    emoji::ensure(&args.dataset.data, None)?;
    let pipe = builder.load(&args.model)?;
    let edits = HeldOutEdits::open(&args.dataset.data, &args.dataset.split, args.most, &pipe)?;
    let options = Options {
        modes,
        steps: args.steps,
        seed: args.seed,
    };
    let table = table(&pipe, &edits, &options, perceptual.as_ref())?;
    // The files are written also if the reader of stdout is gone.
    let said = say(format_args!("{table}"));
    if let Some(path) = &args.csv {
        save(path, &table.csv()?)?;
    }
    if let Some(path) = &args.plot {
        save(path, &plot(&table)?)?;
    }
    said
}
