//! Generates an image from text: `cargo xtask run --release --example generate -- --prompt "a lighthouse at dusk"`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kontext::Request;
use kontext_cli::args::RunArgs;

/// Generate an image with FLUX.1 Kontext.
#[derive(Debug, Parser)]
struct Args {
    /// Description of the image; the default is for the small model, which knows emoji
    #[arg(long, value_name = "TEXT", default_value = "a red heart, 3d style")]
    prompt: String,
    /// The file to write: .png, .jpg or .webp
    #[arg(long, value_name = "FILE", default_value = "generate.png")]
    out: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        let request = args.run.apply(Request::generate(&args.prompt))?;
        kontext_cli::run::run(&args.run, &request, &args.out).map(drop)
    })
}
