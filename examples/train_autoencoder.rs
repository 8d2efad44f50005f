//! Trains an autoencoder on a folder of pictures: `cargo xtask run --release --example train_autoencoder -- --data DIR`.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use common::training::{Limit, Shown, stopped};
use kontext::save_part;
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
    minutes: Option<f64>,
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
    let limit = Limit::new(args.minutes)?;
    let mut pictures = Vec::new();
    collect(&args.data, &mut pictures)?;
    pictures.sort();
    let mut shown = Shown::new("training", recipe.steps);
    let mut trainer = AutoencoderTrainer::open(recipe, &pictures, &args.out, kontext::Device::Cpu)?;
    let result = trainer.run(|r| {
        shown.set(
            r.step,
            format!(
                "loss {:.4}, {:.1} dB, {:.1} crops/s",
                r.loss, r.psnr, r.items_per_second
            ),
        );
        limit.check()
    });
    stopped(result)?;
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
        } else if path
            .extension()
            .is_some_and(|e| known.iter().any(|known| e.eq_ignore_ascii_case(known)))
        {
            pictures.push(path);
        }
    }
    Ok(())
}
