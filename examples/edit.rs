//! Edits a picture: `cargo xtask run --release --example edit -- --image cat.png --prompt "make it winter"`.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::args::RunArgs;
use common::say;
use common::strip::strip;
use kontext::Request;
use kontext::crates::kontext_core::picture::resize;

/// The edit that is made where no picture is given. Its result is none that the small model was trained on for this
/// instruction.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/emoji-source.png");
const TRUTH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/emoji-truth.png");
const PROMPT: &str = "turn him into a cook";

/// Edit a picture with FLUX.1 Kontext.
#[derive(Debug, Parser)]
struct Args {
    /// The picture to edit; more of them are further references. An emoji if not given
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// How to change it
    #[arg(long, value_name = "TEXT", default_value = PROMPT)]
    prompt: String,
    /// How far it may change, in (0, 1]: below 1 the run starts from the picture
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    strength: f64,
    /// The file to write: .png, .jpg or .webp
    #[arg(long, value_name = "FILE", default_value = "edit.png")]
    out: PathBuf,
    /// Write reference pictures and result side by side to this file; edit-compared.png where no --image is given
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    common::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let demonstration = args.image.is_empty();
    let mut images = args.image.clone();
    let mut compare = args.compare.clone();
    if demonstration {
        images.push(SOURCE.into());
        compare = compare.or(Some("edit-compared.png".into()));
    }
    let mut request = Request::generate(&args.prompt).strength(args.strength);
    for path in images {
        request.images.push(kontext::open(path)?);
    }
    let request = args.run.apply(request)?;
    compare.as_deref().map(kontext::check_writable).transpose()?;
    let Some(output) = common::run::run(&args.run, &request, &args.out)? else {
        return Ok(());
    };
    let Some(compare) = compare else { return Ok(()) };
    let mut pictures = request.images.clone();
    pictures.push(output.image.clone());
    // What it should be is known for one edit alone.
    if demonstration && args.prompt == PROMPT {
        pictures.push(kontext::open(TRUTH)?);
    }
    let height = output.image.height();
    let level = |p: &kontext::image::RgbImage| resize(p, (p.width() * height).div_ceil(p.height()).max(1), height);
    let pictures = pictures.iter().map(level).collect::<kontext::Result<Vec<_>>>()?;
    kontext::save_picture(&strip(&pictures.iter().collect::<Vec<_>>(), 1), &compare, &[])?;
    say(format_args!("wrote {}", compare.display()))
}
