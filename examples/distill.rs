//! Distils the small model to a few steps, against a control: `cargo xtask run --release --example distill`.
//!
//! Trains the student of a recipe with an adversarial objective, and a control at the same noise levels by
//! only the squared error, and prints the table of both next to their teacher. The first run fetches the
//! dataset of the shipped model.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use kontext::{Device, Pipeline, Sampler};
use kontext_bench::metrics::Features;
use kontext_cli::args::positive;
use kontext_cli::few_steps::{Contender, Options, table};
use kontext_cli::training::{Limit, train};
use kontext_cli::{emoji, save, say, shipped};
use kontext_train::{AdversarialObjective, Method, Objective, Recipe};

/// Number of steps of the teacher with whose KID the others are compared.
const BASELINE: usize = 4;

/// Train a few-step student and its control, and measure both.
#[derive(Debug, Parser)]
struct Args {
    /// TOML file of an adversarial recipe
    #[arg(long, value_name = "FILE", default_value_os_t = shipped::model().join("ladd.toml"))]
    recipe: PathBuf,
    /// Folder of the runs: `ladd`, `control`, the shared encodings, and the table
    #[arg(long, value_name = "DIR", default_value = "target/distill")]
    out: PathBuf,
    /// Optimizer steps; those of the recipe if not given
    #[arg(long, value_parser = positive::<u64>, allow_negative_numbers = true)]
    train_steps: Option<u64>,
    /// Learning rate of the control; twice the recipe's if not given
    #[arg(long)]
    control_rate: Option<f64>,
    /// Stop after this many minutes; the same command goes on
    #[arg(long, allow_negative_numbers = true)]
    minutes: Option<f64>,
    /// Numbers of steps of the table
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,2,4",
        value_parser = positive::<usize>,
        allow_negative_numbers = true
    )]
    steps: Vec<usize>,
    /// Samplers of the table: euler, consistency, heun or dpmpp_2m
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "euler,consistency"
    )]
    samplers: Vec<Sampler>,
    /// Maximum of edits in the table
    #[arg(long, default_value_t = 256, value_parser = positive::<usize>, allow_negative_numbers = true)]
    most: usize,
    /// Weights of a feature network, for the column KID
    #[arg(long, value_name = "FILE")]
    features: Option<PathBuf>,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let limit = Limit::new(args.minutes)?;
    let features = args.features.as_deref();
    let features = features.map(|path| Features::open(path, Device::Cpu)).transpose()?;
    let mut recipe = Recipe::open(&args.recipe)?;
    let Some(objective) = recipe.objective.adversarial().cloned() else {
        bail!("{}: its objective is not adversarial", args.recipe.display());
    };
    recipe.steps = args.train_steps.unwrap_or(recipe.steps);
    recipe.data.cache = Some(args.out.join("cache"));
    if args.recipe == shipped::model().join("ladd.toml") {
        emoji::ensure(&recipe.data.folder, None)?;
    }
    let mut contenders = vec![Contender {
        name: "teacher".to_owned(),
        model: recipe.model.clone(),
        builder: Pipeline::builder(),
    }];
    for (name, run) in [
        ("ladd", recipe.clone()),
        (
            "control",
            control(&recipe, &objective, args.control_rate.unwrap_or(2.0 * recipe.rate.peak)),
        ),
    ] {
        let run = Recipe {
            out: args.out.join(name),
            ..run
        };
        let student = result(&run);
        if !train(run, &limit)? {
            return Ok(());
        }
        contenders.push(Contender {
            name: name.to_owned(),
            ..Contender::student(&student, &recipe.model, &Pipeline::builder())?
        });
    }
    let options = Options {
        data: recipe.data.folder.clone(),
        split: recipe.data.validation.clone(),
        most: args.most,
        steps: args.steps.clone(),
        samplers: args.samplers.clone(),
        seed: 0,
        diverse: 32,
        baseline: args.steps.contains(&BASELINE).then_some(BASELINE),
    };
    let table = table(&contenders, &options, features.as_ref())?;
    let said = say(format_args!("{table}"));
    let path = args.out.join("few-steps.csv");
    save(&path, &table.csv()?)?;
    said
}

/// Returns the recipe of the control: only the squared error, at the same levels.
fn control(recipe: &Recipe, objective: &AdversarialObjective, rate: f64) -> Recipe {
    let mut control = recipe.clone();
    // What only concerns the critic keeps its defaults.
    control.objective = Objective::Adversarial(Box::new(AdversarialObjective {
        levels: objective.levels.clone(),
        shares: objective.shares.clone(),
        warmup_shares: objective.warmup_shares.clone(),
        warmup: objective.warmup,
        real: objective.real,
        guidance: objective.guidance,
        adversarial_weight: 0.0,
        mse_weight: 1.0,
        ..AdversarialObjective::default()
    }));
    if let Method::Lora(lora) = &mut control.method {
        // There is no critic's lesson to amplify.
        lora.default_scale = None;
    }
    control.rate.peak = rate;
    control
}

/// Returns the file or folder of a run's result.
fn result(recipe: &Recipe) -> PathBuf {
    let name = match recipe.method {
        Method::Full => Path::new("transformer"),
        Method::Lora(_) => Path::new("lora.safetensors"),
    };
    recipe.out.join(name)
}
