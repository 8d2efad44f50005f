//! Lists the contents of a checkpoint: `cargo xtask run --release --example inspect -- DIR`. Only headers are read. For
//! a single file the parts of a model in it; for the file or folder of a LoRA: naming, ranks, layers, tensors that fit no
//! layer, and the settings of its training.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use kontext::crates::{kontext_formats::Account, kontext_text};
use kontext::image::RgbImage;
use kontext::{Autoencoder, Checkpoint, Dit, Kind, Lora, ModelPart, Pipeline, Request, Result, Weights, free_memory};
use kontext_cli::{PartArgs, say};
use kontext_text::{ClipEncoder, T5Encoder, Tokenizer};

/// List the contents of a model's folder: parts, dtypes, parameters, missing and unused tensors; or of one file with
/// parts of a model; or of a LoRA.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the model, or the file of a part; or a LoRA's file or folder
    #[arg(value_name = "PATH", required_unless_present = "model")]
    folder: Option<PathBuf>,
    /// The same, as a flag
    #[arg(long, value_name = "DIR", conflicts_with = "folder")]
    model: Option<PathBuf>,
    /// Print the threads of an edit of a square image, and its memory with each placement
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    parts: PartArgs,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        let builder = args.parts.apply(Pipeline::builder());
        let folder = args.folder.or(args.model).unwrap_or_default();
        let flag = if args.plan { Some("--plan") } else { args.parts.first() };
        let of_a_model = |got: &str| match flag {
            Some(flag) => bail!("{flag} takes the folder of a model, got the {got} {}", folder.display()),
            None => Ok(()),
        };
        if folder.is_file() {
            of_a_model("file")?;
            return file(&folder);
        }
        let checkpoint = match builder.checkpoint(&folder) {
            Err(_) if Lora::found_in(&folder) => {
                of_a_model("LoRA")?;
                return lora(&folder);
            }
            found => found?,
        };
        say(format_args!("{checkpoint}\n"))?;
        let mut faults = 0;
        for (kind, path) in [
            (ModelPart::Transformer, &checkpoint.transformer),
            (ModelPart::Autoencoder, &checkpoint.vae),
            (ModelPart::Clip, &checkpoint.clip),
            (ModelPart::T5, &checkpoint.t5),
        ] {
            faults += part(kind, path)?;
        }
        for (part, path) in [
            ("CLIP tokenizer", &checkpoint.clip_tokenizer),
            ("T5 tokenizer", &checkpoint.t5_tokenizer),
        ] {
            say(format_args!("{part}: {} tokens", Tokenizer::open(path)?.vocab_size()))?;
        }
        if args.plan {
            let square = Request::edit(RgbImage::new(1024, 1024), "");
            let plan = builder.plan(&folder, &square)?;
            say(format_args!("\narithmetic: {}", plan.compute))?;
            if let Some(attention) = plan.attention {
                say(format_args!("attention: {attention}"))?;
            }
            if let Some(threads) = plan.threads {
                say(format_args!("threads on this machine: {threads}"))?;
            }
            let memory = builder.memory(&folder, &square)?;
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
        concluded(&folder, faults)
    })
}

/// Prints the contents of a single file: the parts of a model in it, or a LoRA.
fn file(path: &Path) -> anyhow::Result<()> {
    let parts = Checkpoint::parts_in(path)?;
    if parts.is_empty() {
        return lora(path);
    }
    let mut faults = 0;
    for kind in parts {
        faults += part(kind, path)?;
    }
    concluded(path, faults)
}

/// Prints that a model or a part is complete; fails if it has faults.
fn concluded(path: &Path, faults: usize) -> anyhow::Result<()> {
    if faults > 0 {
        bail!("{} has {faults} fault(s), listed above", path.display());
    }
    say("complete")
}

/// Prints the contents of a part and returns the number of its faults.
fn part(part: ModelPart, path: &Path) -> anyhow::Result<usize> {
    match part {
        ModelPart::Transformer => {
            let (weights, config) = Checkpoint::transformer_in(path)?;
            let audited = weights.audited();
            let faults = report("transformer", &audited, Dit::new(&audited, &config, |_| ()).map(drop))?;
            say(format_args!("  {config:?}\n"))?;
            Ok(faults)
        }
        ModelPart::Autoencoder => audit("VAE", &Weights::open(path)?, |w| {
            let config = path.join("config.json");
            Autoencoder::from_weights(w, config.is_file().then_some(config.as_path())).map(drop)
        }),
        ModelPart::Clip => audit("CLIP", &ClipEncoder::weights(path)?, |w| {
            ClipEncoder::from_weights(w, path, Kind::Float).map(drop)
        }),
        ModelPart::T5 => audit("T5", &T5Encoder::weights(path)?, |w| {
            T5Encoder::from_weights(w, path, Kind::Float).map(drop)
        }),
        other => bail!("{other} is a part that this program does not know"),
    }
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
