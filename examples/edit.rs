//! Edits a picture: `cargo xtask run --release --example edit -- --image cat.png --prompt "make it winter"`.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::args::RunArgs;
use kontext::Request;

/// Edit a picture with FLUX.1 Kontext.
#[derive(Debug, Parser)]
struct Args {
    /// The picture to edit; more of them are further references. A photo of a cat if not given
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// How to change it
    #[arg(long, value_name = "TEXT", default_value = "Make the cat wear a red hat, keep the background unchanged.")]
    prompt: String,
    /// How far it may change, in (0, 1]: below 1 the run starts from the picture
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    strength: f64,
    /// The file to write: .png, .jpg or .webp
    #[arg(long, value_name = "FILE", default_value = "edit.png")]
    out: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        let mut images = args.image.clone();
        if images.is_empty() {
            images.push(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/chelsea.png").into());
        }
        let mut request = Request::generate(&args.prompt).strength(args.strength);
        for path in images {
            request.images.push(kontext::open(path)?);
        }
        common::run::run(&args.run, &args.run.apply(request)?, &args.out)
    })
}
