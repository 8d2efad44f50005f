//! Generates an image from text: `cargo xtask run --release --example generate -- --prompt "a lighthouse at dusk"`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kontext::Request;
use kontext_cli::args::{RunArgs, free_text};
use kontext_cli::run::Files;

/// Generate an image with FLUX.1 Kontext.
#[derive(Debug, Parser)]
struct Args {
    /// Description of the image; the default is for the small model, which knows emoji
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "a red heart, 3d style",
        allow_hyphen_values = true,
        value_parser = free_text
    )]
    prompt: String,
    /// The file to write: .png, .jpg or .webp. An existing one is replaced
    #[arg(long, value_name = "FILE", default_value = "generate.png")]
    out: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        let request = args.run.apply(Request::generate(&args.prompt))?;
        kontext_cli::run::run(&args.run, &request, &Files::new(&args.out)).map(drop)
    })
}
