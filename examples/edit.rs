//! Edits an image: `cargo xtask run --release --example edit -- --image cat.png --prompt "make it winter"`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use kontext::Request;
use kontext::crates::kontext_core::images::resize;
use kontext::image::RgbImage;
use kontext_cli::args::RunArgs;
use kontext_cli::{say, shipped, strip};

/// Files of the default edit. The small model was not trained on its result for this instruction.
const SOURCE: &str = "emoji-source.png";
const TRUTH: &str = "emoji-truth.png";
const PROMPT: &str = "turn him into a cook";

/// Edit an image with FLUX.1 Kontext.
#[derive(Debug, Parser)]
struct Args {
    /// The image to edit, and further references. An emoji if not given
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Instruction of the edit
    #[arg(long, value_name = "TEXT", default_value = PROMPT)]
    prompt: String,
    /// Strength of the change, in (0, 1]: below 1 the run starts from the image
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    strength: f64,
    /// The file to write: .png, .jpg or .webp
    #[arg(long, value_name = "FILE", default_value = "edit.png")]
    out: PathBuf,
    /// Write reference images and result side by side to this file; edit-compared.png if no --image is given
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let demonstration = args.image.is_empty();
    let mut images = args.image.clone();
    let mut compare = args.compare.clone();
    if demonstration {
        images.push(shipped::data(SOURCE));
        compare = compare.or(Some("edit-compared.png".into()));
    }
    let mut request = Request::generate(&args.prompt).strength(args.strength);
    for path in images {
        request = request.reference(args.run.open_image(path)?);
    }
    let request = args.run.apply(request)?;
    compare.as_deref().map(kontext::io::check_writable).transpose()?;
    let Some(output) = kontext_cli::run::run(&args.run, &request, &args.out)? else {
        return Ok(());
    };
    let Some(compare) = compare else { return Ok(()) };
    let mut images = request.images.clone();
    images.push(output.image.clone().into());
    // The truth is known for one edit only.
    if demonstration && args.prompt == PROMPT {
        images.push(kontext::open_image(shipped::data(TRUTH))?.into());
    }
    let height = output.image.height();
    let level = |image: &Arc<RgbImage>| {
        let width = (image.width() * height).div_ceil(image.height()).max(1);
        resize(image, width, height)
    };
    let images = images.iter().map(level).collect::<kontext::Result<Vec<_>>>()?;
    kontext::io::save_image(&strip(&images.iter().collect::<Vec<_>>(), 1), &compare, &[])?;
    say(format_args!("wrote {}", compare.display()))
}
