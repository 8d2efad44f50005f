//! Trains the model `models/kontext-emoji` from scratch: data, autoencoder, text encoders, transformer.
//!
//! `cargo xtask run --release --example train_small`. If stopped, the same command continues.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use kontext::{DitConfig, ModelDefaults, ModelPart, Shift, save_part};
use kontext_cli::progress::Reporter;
use kontext_cli::training::{Limit, stopped, train, train_autoencoder};
use kontext_cli::{announce, create_folder, emoji, note, read, shipped};
use kontext_core::range::within;
use kontext_train::dataset::Dataset;
use kontext_train::{AutoencoderRecipe, Recipe, TextRecipe, assemble, initial_transformer, train_text};
use serde::Deserialize;

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
#[derive(Debug, Deserialize)]
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
    if !start.join("vae").is_dir() && !autoencoder(args, &stages, &start, &limit)? {
        return Ok(());
    }
    if !start.join("text_encoder").is_dir() && !text(args, &stages, &start, &limit)? {
        return Ok(());
    }
    transformer(args, &stages, &start)?;
    let mut recipe = stages.training;
    (recipe.model, recipe.out, recipe.data.folder) = (start.clone(), args.out.join("run"), args.data.clone());
    let run = recipe.out.clone();
    train(recipe, &limit)?;
    let model = args.out.join("model");
    assemble(&start, &run, &model, kontext::Kind::BFloat16)?;
    announce(format_args!("wrote {}", model.display()));
    Ok(())
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
    if start.join("transformer").is_dir() {
        if let Some(from) = &args.from {
            note(format_args!(
                "warning: --from has no effect on a run that goes on; name a new --out to start from {}",
                from.display()
            ));
        }
        return Ok(());
    }
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
