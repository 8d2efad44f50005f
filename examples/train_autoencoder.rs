//! Trains an autoencoder on a folder of images: `cargo xtask run --release --example train_autoencoder -- --data DIR`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kontext::save_part;
use kontext_cli::training::{Limit, train_autoencoder};
use kontext_cli::{announce, images};
use kontext_train::AutoencoderRecipe;

/// Train an autoencoder.
#[derive(Debug, Parser)]
struct Args {
    /// Folder with the images to train on, also in folders below it
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// TOML file with the recipe; defaults if not given
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// The run's folder: state, and the result in `vae`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Stop after this many minutes; the next run goes on
    #[arg(long, allow_negative_numbers = true)]
    minutes: Option<f64>,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        let recipe = match &args.recipe {
            Some(path) => AutoencoderRecipe::open(path)?,
            None => AutoencoderRecipe::default(),
        };
        train(recipe, &args)
    })
}

fn train(recipe: AutoencoderRecipe, args: &Args) -> anyhow::Result<()> {
    let limit = Limit::new(args.minutes)?;
    let images = images::below(&args.data)?;
    let (trainer, _) = train_autoencoder("training", recipe, &images, &args.out, &limit)?;
    let (tensors, config) = trainer.result()?;
    save_part::vae(&args.out, &tensors, &config)?;
    announce(format_args!("wrote {}", args.out.join("vae").display()));
    Ok(())
}
