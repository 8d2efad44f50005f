//! Makes a picture from text: `cargo xtask run --release --example generate -- --prompt "a lighthouse at dusk"`.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::args::RunArgs;
use kontext::Request;

/// Generate a picture with FLUX.1 Kontext.
#[derive(Debug, Parser)]
struct Args {
    /// What to make; the default is for the small model, which knows emoji
    #[arg(long, value_name = "TEXT", default_value = "a red heart, 3d style")]
    prompt: String,
    /// The file to write: .png, .jpg or .webp
    #[arg(long, value_name = "FILE", default_value = "generate.png")]
    out: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        let request = args.run.apply(Request::generate(&args.prompt))?;
        common::run::run(&args.run, &request, &args.out).map(drop)
    })
}
