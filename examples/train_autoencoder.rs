//! Trains an autoencoder on a folder of pictures: `cargo xtask run --release --example train_autoencoder -- --data DIR`.

#[allow(dead_code)] // Shared with examples that use all of it.
mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use kontext::{Cancel, Error, save_part};
use kontext_train::{AutoencoderRecipe, AutoencoderTrainer};

/// Train an autoencoder.
#[derive(Debug, Parser)]
struct Args {
    /// Folder whose pictures (and those in folders below it) are trained on
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// TOML file with the recipe; defaults if not given
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// The run's folder: state, and the result in `vae`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Stop after this many minutes; the next run goes on
    #[arg(long)]
    minutes: Option<u64>,
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        let recipe = match &args.recipe {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                toml::from_str(&text).with_context(|| format!("{} is no recipe", path.display()))?
            }
            None => AutoencoderRecipe::default(),
        };
        train(recipe, &args)
    })
}

fn train(recipe: AutoencoderRecipe, args: &Args) -> anyhow::Result<()> {
    let mut pictures = Vec::new();
    collect(&args.data, &mut pictures)?;
    pictures.sort();
    let mut trainer = AutoencoderTrainer::open(recipe, &pictures, &args.out, kontext::Device::Cpu)?;
    let cancel = Cancel::new();
    let remote = cancel.clone();
    ctrlc::set_handler(move || remote.cancel())?;
    let (begin, limit) = (Instant::now(), args.minutes.map(|minutes| Duration::from_secs(60 * minutes)));
    let mut bar = None;
    let result = trainer.run(|report| {
        let bar = bar.get_or_insert_with(|| common::progress::bar("training", report.total as usize));
        bar.set_position(report.step);
        bar.set_message(format!("loss {:.4}, {:.1} dB, {:.1}/s", report.loss, report.psnr, report.items_per_second));
        if report.step % 20 == 0 && bar.is_hidden() {
            eprintln!(
                "step {} loss {:.4} psnr {:.2} rms {:.2} {:.1}/s",
                report.step, report.loss, report.psnr, report.latent_rms, report.items_per_second
            );
        }
        if limit.is_some_and(|limit| begin.elapsed() > limit) { ControlFlow::Break(()) } else { cancel.check() }
    });
    match result {
        Err(Error::Cancelled { done, total }) => eprintln!("stopped after step {done} of {total}; run again to go on"),
        other => other?,
    }
    let (tensors, config) = trainer.result()?;
    save_part::vae(&args.out, &tensors, &config)?;
    common::say(format_args!("wrote {}", args.out.join("vae").display()))
}

/// All pictures below a folder.
fn collect(folder: &Path, pictures: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))? {
        let path = entry?.path();
        let known = ["png", "jpg", "jpeg", "webp"];
        if path.is_dir() {
            collect(&path, pictures)?;
        } else if path.extension().is_some_and(|e| known.iter().any(|known| e.eq_ignore_ascii_case(known))) {
            pictures.push(path);
        }
    }
    Ok(())
}
