//! Teaches a model an edit from pairs of images: `cargo xtask run --release --example finetune`.
//!
//! Without `--data`, the edit is one that the small model cannot do: a red frame around the image.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use kontext::image::{Rgb, RgbImage};
use kontext::{Pipeline, PipelineBuilder};
use kontext_bench::edit::{Mean, Table};
use kontext_cli::judge::{Edit, Judge, edits};
use kontext_cli::training::{Limit, train};
use kontext_cli::{announce, create_folder, emoji, note, say, shipped, write};
use kontext_train::{LoraMethod, Method, Recipe};
use serde_json::json;

/// Fine-tune a model on pairs of images, and score it before and after.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the model
    #[arg(long, value_name = "DIR", default_value_os_t = shipped::model())]
    model: PathBuf,
    /// Folder with metadata.jsonl: source, target, instruction and split (`train`, also without one, or
    /// `test`) on each line. Without it, pairs with a red frame are made of the emoji dataset
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of the run: state, curves, samples, and the result
    #[arg(long, value_name = "DIR", default_value = "target/finetune")]
    out: PathBuf,
    /// TOML file with the whole recipe, instead of these options
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["model", "data", "out", "method", "rank", "steps", "rate"]
    )]
    recipe: Option<PathBuf>,
    /// Train low-rank adapters, with the norms of the weights' rows (dora) or without, or all of the transformer
    #[arg(long, value_enum, default_value_t)]
    method: Which,
    /// Rank of the adapters; 8 if not given
    #[arg(long, allow_negative_numbers = true)]
    rank: Option<i64>,
    /// Optimizer steps
    #[arg(long, default_value_t = 300)]
    steps: u64,
    /// Learning rate; 3e-3 for adapters and 2e-4 for all of the transformer if not given
    #[arg(long)]
    rate: Option<f64>,
    /// Stop after this many minutes; the same command goes on
    #[arg(long, allow_negative_numbers = true)]
    minutes: Option<f64>,
    /// Field of the recipe that may differ from that of the run in --out, as `steps` or `rate.peak`, or
    /// `model files` or `data files`; may be repeated
    #[arg(long, value_name = "FIELD", alias = "resume")]
    accept_changes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Which {
    #[default]
    Lora,
    Dora,
    Full,
}

/// Folder of the pairs with a red frame.
const FRAMED: &str = "target/frames";

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.method == Which::Full && args.rank.is_some() {
        bail!("--rank has no effect with --method full, which trains no adapters; leave one of them out");
    }
    let limit = Limit::new(args.minutes)?;
    let data = args.data.clone().unwrap_or_else(|| PathBuf::from(FRAMED));
    let mut recipe = match &args.recipe {
        Some(path) => Recipe::open(path)?,
        None => recipe(args, &data)?,
    };
    recipe.accept_changes.extend_from_slice(&args.accept_changes);
    // The data and the first evaluation take a while.
    recipe.validate()?;
    if recipe.data.folder == Path::new(FRAMED) {
        framed(Path::new("target"))?;
    }
    // What has no effect is reported as the training begins.
    recipe.check()?;
    let held_out = edits(&recipe.data.folder, &[&recipe.data.validation])?;
    if held_out.is_empty() {
        bail!(
            "{} has no lines of split `{}` to score",
            recipe.data.folder.display(),
            recipe.data.validation
        );
    }
    let (model, out, folder) = (recipe.model.clone(), recipe.out.clone(), recipe.data.folder.clone());
    let method = recipe.method.clone();
    let Some(before) = score(&Pipeline::builder(), &model, &folder, &held_out, None, &limit)? else {
        note("stopped before the training; run the same command to begin again");
        return Ok(());
    };
    announce(format_args!("before: {}", described(&before)));
    if !train(recipe, &limit)? {
        return Ok(());
    }
    let (builder, result) = match method {
        Method::Lora(_) => {
            let file = out.join("lora.safetensors");
            (Pipeline::builder().lora(&file, 1.0), file)
        }
        Method::Full => {
            let folder = out.join("transformer");
            (Pipeline::builder().transformer(&folder), folder)
        }
    };
    let strip = out.join("held-out.png");
    let Some(after) = score(&builder, &model, &folder, &held_out, Some(&strip), &limit)? else {
        note("stopped after the training; run the same command to score it");
        return Ok(());
    };
    say(format_args!("before: {}", described(&before)))?;
    say(format_args!("after:  {}", described(&after)))?;
    say(format_args!("wrote {} and {}", result.display(), strip.display()))
}

/// Returns the recipe that the options describe.
fn recipe(args: &Args, data: &Path) -> anyhow::Result<Recipe> {
    let lora = LoraMethod {
        rank: args.rank.unwrap_or(8),
        dora: args.method == Which::Dora,
        ..LoraMethod::default()
    };
    let (method, usual) = match args.method {
        Which::Lora | Which::Dora => (Method::Lora(lora), 3e-3),
        Which::Full => (Method::Full, 2e-4),
    };
    let mut recipe: Recipe = serde_json::from_value(json!({
        "model": args.model, "out": args.out, "steps": args.steps, "ema": 0.98,
        "data": {"folder": data, "batch": 16, "validation_items": 32},
        "rate": {"warmup": 20, "floor": 0.05},
        "every": {"save": 100, "validate": 50, "sample": 100},
    }))?;
    recipe.method = method;
    // JSON has no NaN, which is to be refused in words.
    recipe.rate.peak = args.rate.unwrap_or(usual);
    Ok(recipe)
}

/// Returns the mean score of the held-out pairs, or `None` if it was stopped; writes the images of the first one to
/// `strip`.
fn score(
    builder: &PipelineBuilder,
    model: &Path,
    data: &Path,
    held_out: &[Edit],
    strip: Option<&Path>,
    limit: &Limit,
) -> anyhow::Result<Option<Mean>> {
    /// More pairs give the same numbers.
    const MOST: usize = 32;
    let mut judge = Judge::new(builder.load(model)?, data)?;
    let mut table = Table::new();
    for (index, edit) in held_out.iter().take(MOST).enumerate() {
        if limit.check().is_break() {
            return Ok(None);
        }
        let judged = judge.judge(edit, &edit.source, 0)?;
        table.add("held out", judged.score);
        if let (Some(path), 0) = (strip, index) {
            kontext::io::save_image(&judged.strip(), path, &[])?;
        }
    }
    let mean = table.mean("").context("there is nothing to score")?;
    Ok(Some(mean))
}

fn described(mean: &Mean) -> String {
    format!(
        "{:.0} % of {} held-out edits right, PSNR {:.1} dB ({:+.1} dB over copying)",
        100.0 * mean.right,
        mean.count,
        mean.psnr,
        mean.gain.unwrap_or_default()
    )
}

/// Makes pairs without and with a red frame from emoji, unless they are there.
fn framed(target: &Path) -> anyhow::Result<()> {
    const INSTRUCTION: &str = "add a red frame";
    /// One in this many pairs is held out.
    const ONE_IN: usize = 10;
    const PAIRS: usize = 320;
    let out = Path::new(FRAMED);
    if out.join("metadata.jsonl").is_file() {
        return Ok(());
    }
    let data = target.join("emoji");
    emoji::ensure(&data, None)?;
    let mut images: Vec<PathBuf> = edits(&data, &["test"])?.into_iter().map(|edit| edit.target).collect();
    images.extend(
        edits(&data, &["train"])?
            .into_iter()
            .step_by(97)
            .map(|edit| edit.target),
    );
    images.sort();
    images.dedup();
    create_folder(out)?;
    let mut lines = String::new();
    let stride = (images.len() / PAIRS).max(1);
    for (index, path) in images.iter().step_by(stride).take(PAIRS).enumerate() {
        let image = kontext::open_image(data.join(path))?;
        let (source, framed) = (format!("{index}.png"), format!("{index}-framed.png"));
        kontext::io::save_image(&image, out.join(&source), &[])?;
        kontext::io::save_image(&with_frame(image), out.join(&framed), &[])?;
        let split = if index % ONE_IN == 0 { "test" } else { "train" };
        let line = json!({"source": source, "target": framed, "instruction": INSTRUCTION, "split": split});
        lines.push_str(&format!("{line}\n"));
    }
    write(&out.join("metadata.jsonl"), &lines)
}

/// Adds a frame of a twelfth of the image's shorter side.
fn with_frame(mut image: RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let border = width.min(height) / 12;
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let edge = x.min(y).min(width - 1 - x).min(height - 1 - y);
        if edge < border {
            *pixel = Rgb([215, 35, 40]);
        }
    }
    image
}
