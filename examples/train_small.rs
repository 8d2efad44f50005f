//! Trains the model `models/kontext-emoji` from scratch: data, autoencoder, text encoders, transformer.
//!
//! `cargo xtask run --release --example train_small`. If stopped, the same command continues; the text encoders, which
//! take minutes, begin again. A stage is done when its recipe is recorded next to its result; with another recipe it is
//! refused. The recipe's `[training]` has the fields of `Recipe` but `model`, `out` and `data.folder`, which follow from
//! the options.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use kontext::{DitConfig, ModelDefaults, ModelPart, Shift, save_part};
use kontext_cli::progress::Reporter;
use kontext_cli::training::{Limit, stopped, train, train_autoencoder, warn};
use kontext_cli::{announce, create_folder, emoji, read, shipped, write};
use kontext_core::range::within;
use kontext_train::dataset::Dataset;
use kontext_train::{
    AutoencoderRecipe, Method, Recipe, TextRecipe, assemble, differences, initial_transformer, train_text,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toml::Table;

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
    /// Reads the file; the options set the folders of the last stage.
    fn open(args: &Args) -> anyhow::Result<Self> {
        let mut table: Table = toml::from_str(&read(&args.recipe)?)?;
        if let Some(Some(training)) = table.get_mut("training").map(toml::Value::as_table_mut) {
            set(training, "training.model", &args.start())?;
            set(training, "training.out", &args.out.join("run"))?;
            let data = training.entry("data").or_insert_with(|| Table::new().into());
            if let Some(data) = data.as_table_mut() {
                set(data, "training.data.folder", &args.data)?;
            }
        }
        let stages: Self = table.try_into()?;
        stages.validate()?;
        Ok(stages)
    }

    fn validate(&self) -> anyhow::Result<()> {
        self.autoencoder.validate().context("in [autoencoder]")?;
        self.text.validate().context("in [text]")?;
        self.training.validate().context("in [training]")?;
        if self.training.method != Method::Full {
            bail!("training.method has no effect: all of a new transformer is trained; leave it out");
        }
        for size in self.defaults.sizes() {
            size.grid().context("in [defaults]")?;
        }
        if self.defaults.guidance.is_some() {
            bail!("defaults.guidance has no effect: the model has no guidance embedding; leave it out");
        }
        within("shift", self.shift, 0.001..=1000.0)?;
        within("transformer.heads", self.transformer.heads, 1..=1024)?;
        within("transformer.head_dim", self.transformer.head_dim, 1..=1024)?;
        self.config().validate().context("in [transformer]")
    }

    /// Returns the transformer's configuration.
    fn config(&self) -> DitConfig {
        let Sizes {
            heads,
            head_dim,
            axes_dim,
            double_blocks,
            single_blocks,
        } = self.transformer;
        let channels = 4 * self.autoencoder.latent_channels;
        DitConfig {
            in_channels: channels,
            out_channels: channels,
            heads,
            head_dim,
            axes_dim,
            mlp_width: 4 * heads * head_dim,
            double_blocks,
            single_blocks,
            context_dim: self.text.width,
            pooled_dim: self.text.width,
            guidance_embed: false,
        }
    }
}

/// Sets a folder that follows from the options; `name` is the field's in the whole recipe.
fn set(table: &mut Table, name: &str, folder: &Path) -> anyhow::Result<()> {
    let field = name.rsplit('.').next().unwrap_or(name);
    if table.contains_key(field) {
        bail!("{name} has no effect: --out and --data set it; leave it out");
    }
    let text = folder.to_str();
    let text = text.with_context(|| format!("the folder {} is not UTF-8", folder.display()))?;
    table.insert(field.to_owned(), text.into());
    Ok(())
}

impl Args {
    /// Returns the folder of the model before its training.
    fn start(&self) -> PathBuf {
        self.out.join("start")
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
        let stages = Stages::open(&args).with_context(|| format!("{} is no recipe", args.recipe.display()))?;
        run(&args, stages)
    })
}

fn run(args: &Args, stages: Stages) -> anyhow::Result<()> {
    let limit = Limit::new(args.minutes)?;
    emoji::ensure(&args.data, Some(args.out.join("packages")))?;
    let start = args.start();
    create_folder(&start)?;
    let mut without_intervals = stages.autoencoder.clone();
    (without_intervals.save, without_intervals.accept_changes) = (0, Vec::new());
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
    let run = stages.training.out.clone();
    if !train(stages.training, &limit)? && !run.join("transformer").is_dir() {
        return Ok(());
    }
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
    let changes = differences(&before, recipe)?;
    if !changes.is_empty() {
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        bail!(
            "the stage `{stage}` was run with another recipe, {}: {}; set it back, or give another folder (--out)",
            path.display(),
            changes.join(", ")
        );
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
    stages.text.warnings().iter().for_each(warn);
    let mut reporter = Reporter::new("text", 2 * stages.text.steps);
    let result = train_text(&stages.text, &train, start, |r| {
        let before = if r.encoder == ModelPart::Clip { r.total } else { 0 };
        reporter.set(before + r.step, format!("{} loss {:.4}", r.encoder, r.loss));
        limit.check()
    });
    let leaves = "nothing is saved of the text encoders, the same command begins them again";
    Ok(!stopped(result, leaves)?)
}

/// Writes the initial transformer and the other files of the model's folder.
fn transformer(args: &Args, stages: &Stages, start: &Path) -> anyhow::Result<()> {
    let config = stages.config();
    save_part::index(start, Shift::Fixed(stages.shift))?;
    stages.defaults.save(start)?;
    let tensors = match &args.from {
        Some(model) => kontext_train::Base::open(model)?.transformer_tensors()?,
        None => initial_transformer(&config, stages.training.seed)?,
    };
    Ok(save_part::transformer(start, tensors, &config)?)
}
