//! Lists the contents of a checkpoint: `cargo xtask run --release --example inspect -- DIR`. Only headers are read. For
//! the file of a LoRA: naming, ranks, layers, tensors that fit no layer, and the settings of its training.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use kontext::crates::{kontext_formats::Account, kontext_text};
use kontext::image::RgbImage;
use kontext::{Autoencoder, Checkpoint, Dit, Kind, Lora, Pipeline, Request, Result, Weights, free_memory};
use kontext_cli::say;
use kontext_text::{ClipEncoder, T5Encoder, Tokenizer};

/// List the contents of a model's folder: parts, dtypes, parameters, missing and unused tensors; or of a LoRA's file.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the model, or a LoRA's file
    #[arg(value_name = "PATH", required_unless_present = "model")]
    folder: Option<PathBuf>,
    /// The same, as a flag
    #[arg(long, value_name = "DIR", conflicts_with = "folder")]
    model: Option<PathBuf>,
    /// Print the memory that an edit of a square image takes with each placement
    #[arg(long)]
    plan: bool,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        let folder = args.folder.or(args.model).unwrap_or_default();
        if folder.is_file() && args.plan {
            bail!("--plan takes the folder of a model, got the file {}", folder.display());
        }
        if folder.is_file() {
            return lora(&folder);
        }
        let checkpoint = Checkpoint::find(&folder)?;
        say(format_args!("{checkpoint}\n"))?;
        let mut faults = 0;
        let (weights, config) = checkpoint.open_transformer()?;
        let audited = weights.audited();
        faults += report("transformer", &audited, Dit::new(&audited, &config, |_| ()).map(drop))?;
        say(format_args!("  {config:?}\n"))?;
        faults += audit("VAE", &Weights::open(&checkpoint.vae)?, |w| {
            let config = checkpoint.vae.join("config.json");
            Autoencoder::from_weights(w, config.is_file().then_some(config.as_path())).map(drop)
        })?;
        let (clip, t5) = (&checkpoint.clip, &checkpoint.t5);
        faults += audit("CLIP", &ClipEncoder::weights(clip)?, |w| {
            ClipEncoder::from_weights(w, clip, Kind::Float).map(drop)
        })?;
        faults += audit("T5", &T5Encoder::weights(t5)?, |w| {
            T5Encoder::from_weights(w, t5, Kind::Float).map(drop)
        })?;
        for (part, path) in [
            ("CLIP tokenizer", &checkpoint.clip_tokenizer),
            ("T5 tokenizer", &checkpoint.t5_tokenizer),
        ] {
            say(format_args!("{part}: {} tokens", Tokenizer::open(path)?.vocab_size()))?;
        }
        if args.plan {
            let square = Request::edit(RgbImage::new(1024, 1024), "");
            let memory = Pipeline::builder().memory(&folder, &square)?;
            for memory in &memory {
                say(format_args!("\n{memory}"))?;
            }
            if let Some(first) = memory.first() {
                say(format_args!(
                    "\n{} MB of memory are free",
                    free_memory(first.device)? / 1_000_000
                ))?;
            }
        }
        if faults > 0 {
            bail!("{} has {faults} fault(s), listed above", folder.display());
        }
        say("complete")
    })
}

/// Prints the contents of a LoRA; fails if a pipeline would refuse it.
fn lora(file: &Path) -> anyhow::Result<()> {
    say(Lora::inspect(file)?)?;
    Lora::open(file)?;
    say("complete")
}

/// Builds a part, then reports on its weights.
fn audit(part: &str, weights: &Weights, build: impl FnOnce(&Weights) -> Result<()>) -> anyhow::Result<usize> {
    let weights = weights.audited();
    let built = build(&weights);
    let faults = report(part, &weights, built)?;
    say("")?;
    Ok(faults)
}

/// Prints the summary of a part and returns the number of its faults.
fn report(part: &str, weights: &Weights, built: Result<()>) -> anyhow::Result<usize> {
    built?;
    let Account {
        tensors,
        parameters,
        bytes,
        dtypes,
        ..
    } = weights.store().account();
    let dtypes: Vec<String> = dtypes
        .iter()
        .map(|(name, count)| format!("{name} {}", millions(*count)))
        .collect();
    say(format_args!(
        "{part}: {tensors} tensors, {} parameters, {} MB ({})",
        millions(parameters),
        bytes / 1_000_000,
        dtypes.join(", ")
    ))?;
    let (problems, unused) = (weights.problems(), weights.unused());
    for problem in &problems {
        say(format_args!("  {problem}"))?;
    }
    for name in &unused {
        say(format_args!("  unused: `{name}`"))?;
    }
    Ok(problems.len() + unused.len())
}

fn millions(count: u64) -> String {
    format!("{:.2} M", count as f64 / 1e6)
}
