//! Measures where a critic can see: `cargo xtask run --release --example ladd_probe`.
//!
//! Trains the heads of an adversarial recipe at some noise levels to rank real images above those that the
//! base model makes in one step, and prints the share of held-out pairs that they rank right. The recipe's
//! `critic_density` is chosen from it. The first run fetches the dataset of the shipped model.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kontext_cli::args::positive;
use kontext_cli::progress::{Reporter, above};
use kontext_cli::training::{Limit, warn};
use kontext_cli::{emoji, say, shipped};
use kontext_train::{ProbeOptions, Recipe, TrainEvent, probe};

/// Measure at which noise levels a critic ranks pairs right.
#[derive(Debug, Parser)]
struct Args {
    /// TOML file of an adversarial recipe
    #[arg(long, value_name = "FILE", default_value_os_t = shipped::model().join("ladd.toml"))]
    recipe: PathBuf,
    /// Noise levels, each from 0.001 to 0.999
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0.02,0.1,0.25,0.5,0.73,0.9",
        allow_negative_numbers = true
    )]
    levels: Vec<f64>,
    /// Training examples of the heads
    #[arg(long, default_value_t = 560, value_parser = positive::<usize>, allow_negative_numbers = true)]
    training: usize,
    /// Held-out examples
    #[arg(long, default_value_t = 160, value_parser = positive::<usize>, allow_negative_numbers = true)]
    held_out: usize,
    /// Steps of the heads at each level
    #[arg(long, default_value_t = 120, value_parser = positive::<usize>, allow_negative_numbers = true)]
    steps: usize,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let recipe = Recipe::open(&args.recipe)?;
    let limit = Limit::new(None)?;
    if args.recipe == shipped::model().join("ladd.toml") {
        emoji::ensure(&recipe.data.folder, None)?;
    }
    let options = ProbeOptions {
        levels: args.levels.clone(),
        training: args.training,
        held_out: args.held_out,
        steps: args.steps,
    };
    let mut encoding: Option<(&'static str, Reporter)> = None;
    let report = probe(&recipe, &options, |event| {
        match event {
            TrainEvent::Warning(warning) => warn(warning),
            TrainEvent::Skipped(skipped) => above(format_args!("skipped {skipped}")),
            TrainEvent::Encoding(fill) => {
                if encoding.as_ref().is_none_or(|(what, _)| *what != fill.what) {
                    encoding = Some((fill.what, Reporter::new("probing", fill.total as u64)));
                }
                if let Some((_, reporter)) = &mut encoding {
                    reporter.set(fill.done as u64, fill.what.to_owned());
                }
            }
            _ => {}
        }
        limit.check()
    })?;
    drop(encoding);
    say(format_args!("{report}"))
}
