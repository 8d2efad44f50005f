//! Trains the model `models/kontext-emoji` from scratch: data, autoencoder, text encoders, transformer.
//!
//! `cargo xtask run --release --example train_small`. If stopped, the same command continues. A stage is done when
//! its recipe is recorded next to its result; with another recipe it is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use kontext::{DitConfig, ModelDefaults, ModelPart, Shift, save_part};
use kontext_cli::progress::Reporter;
use kontext_cli::training::{Limit, stopped, train, train_autoencoder};
use kontext_cli::{announce, create_folder, emoji, read, shipped, write};
use kontext_core::range::within;
use kontext_train::dataset::Dataset;
use kontext_train::{AutoencoderRecipe, Recipe, TextRecipe, assemble, initial_transformer, train_text};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Train the small model from scratch.
#[derive(Debug, Parser)]
struct Args {
    /// TOML file with the recipe
    #[arg(long, value_name = "FILE", default_value_os_t = shipped::model().join("recipe.toml"))]
    recipe: PathBuf,
    /// The dataset's folder; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "target/emoji")]
    data: PathBuf,
    /// Folder of all stages; the model is written to `model` in it
    #[arg(long, value_name = "DIR", default_value = "target/kontext-emoji")]
    out: PathBuf,
    /// Stop after this many minutes; the same command goes on
    #[arg(long, allow_negative_numbers = true)]
    minutes: Option<f64>,
    /// Start the transformer from this model's instead of random values; the sizes must be the same
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
}

/// The recipe of all stages.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stages {
    autoencoder: AutoencoderRecipe,
    text: TextRecipe,
    transformer: Sizes,
    defaults: ModelDefaults,
    /// Factor by which noise levels are shifted towards noise; 1 disables it.
    shift: f64,
    training: Recipe,
}

impl Stages {
    fn validate(&self) -> anyhow::Result<()> {
        self.autoencoder.validate().context("in [autoencoder]")?;
        self.text.validate().context("in [text]")?;
        self.training.validate().context("in [training]")?;
        within("shift", self.shift, 0.001..=1000.0)?;
        within("transformer.heads", self.transformer.heads, 1..=1024)?;
        within("transformer.head_dim", self.transformer.head_dim, 1..=1024)?;
        Ok(())
    }
}

/// The transformer's sizes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    heads: i64,
    head_dim: i64,
    axes_dim: [i64; 3],
    double_blocks: i64,
    single_blocks: i64,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        let invalid = || format!("{} is no recipe", args.recipe.display());
        let stages: Stages = toml::from_str(&read(&args.recipe)?).with_context(invalid)?;
        stages.validate().with_context(invalid)?;
        run(&args, stages)
    })
}

fn run(args: &Args, stages: Stages) -> anyhow::Result<()> {
    let limit = Limit::new(args.minutes)?;
    emoji::ensure(&args.data, Some(args.out.join("packages")))?;
    let start = args.out.join("start");
    create_folder(&start)?;
    let mut without_intervals = stages.autoencoder.clone();
    (without_intervals.save, without_intervals.resume) = (0, Vec::new());
    let recipe = json!(without_intervals);
    if !is_done(args, "autoencoder", &recipe)? {
        if !autoencoder(args, &stages, &start, &limit)? {
            return Ok(());
        }
        done(args, "autoencoder", &recipe)?;
    }
    let recipe = json!(stages.text);
    if !is_done(args, "text", &recipe)? {
        if !text(args, &stages, &start, &limit)? {
            return Ok(());
        }
        done(args, "text", &recipe)?;
    }
    let recipe = json!({"transformer": stages.transformer, "shift": stages.shift, "defaults": stages.defaults,
        "seed": stages.training.seed, "from": args.from});
    if !is_done(args, "transformer", &recipe)? {
        transformer(args, &stages, &start)?;
        done(args, "transformer", &recipe)?;
    }
    let mut recipe = stages.training;
    (recipe.model, recipe.out, recipe.data.folder) = (start.clone(), args.out.join("run"), args.data.clone());
    let run = recipe.out.clone();
    train(recipe, &limit)?;
    let model = args.out.join("model");
    assemble(&start, &run, &model, kontext::Kind::BFloat16)?;
    announce(format_args!("wrote {}", model.display()));
    Ok(())
}

/// Returns `true` if a stage is done.
fn is_done(args: &Args, stage: &str, recipe: &Value) -> anyhow::Result<bool> {
    let path = args.out.join(format!("{stage}.json"));
    if !path.is_file() {
        return Ok(false);
    }
    let before: Value =
        serde_json::from_str(&read(&path)?).with_context(|| format!("{} is no recipe", path.display()))?;
    if before != *recipe {
        let path = path.display();
        bail!("the stage `{stage}` was run with another recipe, {path}; set it back, or give another folder (--out)");
    }
    Ok(true)
}

/// Records that a stage is done, after all its files.
fn done(args: &Args, stage: &str, recipe: &Value) -> anyhow::Result<()> {
    write(&args.out.join(format!("{stage}.json")), &format!("{recipe:#}\n"))
}

/// Trains the autoencoder; returns `false` if it was stopped.
fn autoencoder(args: &Args, stages: &Stages, start: &Path, limit: &Limit) -> anyhow::Result<bool> {
    let dataset = Dataset::open(&args.data)?;
    let images: Vec<PathBuf> = dataset
        .images()
        .into_iter()
        .map(|image| args.data.join(image))
        .collect();
    let recipe = stages.autoencoder.clone();
    let folder = args.out.join("autoencoder");
    let (trainer, completed) = train_autoencoder("autoencoder", recipe, &images, &folder, limit)?;
    if !completed {
        return Ok(false);
    }
    let (tensors, config) = trainer.result()?;
    save_part::vae(start, &tensors, &config)?;
    Ok(true)
}

/// Trains the text encoders; returns `false` if it was stopped.
fn text(args: &Args, stages: &Stages, start: &Path, limit: &Limit) -> anyhow::Result<bool> {
    let dataset = Dataset::open(&args.data)?;
    // Held-out wordings consist of known words; as sentences they are new.
    let train: BTreeSet<String> = dataset
        .items
        .into_iter()
        .filter(|item| item.split == "train")
        .map(|item| item.instruction)
        .collect();
    let mut reporter = Reporter::new("text", 2 * stages.text.steps);
    let result = train_text(&stages.text, &train, start, |r| {
        let before = if r.encoder == ModelPart::Clip { r.total } else { 0 };
        reporter.set(before + r.step, format!("{} loss {:.4}", r.encoder, r.loss));
        limit.check()
    });
    Ok(!stopped(result)?)
}

/// Writes the initial transformer and the other files of the model's folder.
fn transformer(args: &Args, stages: &Stages, start: &Path) -> anyhow::Result<()> {
    let Sizes {
        heads,
        head_dim,
        axes_dim,
        double_blocks,
        single_blocks,
    } = stages.transformer;
    let channels = 4 * stages.autoencoder.latent_channels;
    let config = DitConfig {
        in_channels: channels,
        out_channels: channels,
        heads,
        head_dim,
        axes_dim,
        mlp_width: 4 * heads * head_dim,
        double_blocks,
        single_blocks,
        context_dim: stages.text.width,
        pooled_dim: stages.text.width,
        guidance_embed: false,
    };
    save_part::index(start, Shift::Fixed(stages.shift))?;
    stages.defaults.save(start)?;
    let tensors = match &args.from {
        Some(model) => kontext_train::Base::open(model)?.transformer_tensors()?,
        None => initial_transformer(&config, stages.training.seed)?,
    };
    Ok(save_part::transformer(start, tensors, &config)?)
}
