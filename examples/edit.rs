//! Edits an image: `cargo xtask run --release --example edit -- --image cat.png --prompt "make it winter"`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use kontext::crates::kontext_core::images::resize;
use kontext::image::RgbImage;
use kontext::io::check_transparent_file;
use kontext::{Request, Size};
use kontext_cli::args::{RunArgs, color, free_text};
use kontext_cli::run::Files;
use kontext_cli::{announce, note, row_size, shipped, strip};

/// Files of the default edit. The small model was not trained on its result for this instruction.
const SOURCE: &str = "emoji-source.png";
const TRUTH: &str = "emoji-truth.png";
const PROMPT: &str = "turn him into a cook";

/// Red, green and blue.
type Ground = [u8; 3];

/// Edit an image with FLUX.1 Kontext.
#[derive(Debug, Parser)]
struct Args {
    /// The image to edit, and further references. An emoji if not given
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Instruction of the edit
    #[arg(
        long,
        value_name = "TEXT",
        default_value = PROMPT,
        allow_hyphen_values = true,
        value_parser = free_text
    )]
    prompt: String,
    /// Strength of the change, in (0, 1]: below 1 the run starts from the image
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    strength: f64,
    /// Keep the transparency of the image to edit in the result, which is then a .png or .webp
    #[arg(long)]
    keep_alpha: bool,
    /// Colour under transparent parts of the images that the model sees: ff8000 for orange
    #[arg(long, value_name = "COLOR", default_value = "ffffff", value_parser = color)]
    ground: Ground,
    /// The file to write: .png, .jpg or .webp. An existing one is replaced
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
    if args.keep_alpha {
        check_transparent_file(&args.out)?;
    }
    let mut alpha = None;
    let open = args.run.open_options().ground(args.ground);
    for (index, path) in images.iter().enumerate() {
        let (image, transparency) = open.open_with_alpha(path)?;
        request = request.reference(image);
        if index == 0 {
            alpha = transparency.filter(|_| args.keep_alpha);
        }
    }
    if args.keep_alpha && alpha.is_none() {
        note("warning: --keep-alpha has no effect, because the image to edit has no transparent pixels; leave it out");
    }
    let request = args.run.apply(request)?;
    if args.run.plan && args.compare.is_some() {
        note("warning: --compare has no effect with --plan; leave one of them out");
    }
    let files = Files {
        out: &args.out,
        compare: compare.as_deref(),
        images: &images,
        alpha: alpha.as_ref(),
    };
    let Some(output) = kontext_cli::run::run(&args.run, &request, &files)? else {
        return Ok(());
    };
    let Some(compare) = compare else { return Ok(()) };
    let mut images = request.images.clone();
    images.push(output.image.clone().into());
    // The truth is known for one edit only.
    if demonstration && args.prompt == PROMPT {
        images.push(kontext::open_image(shipped::data(TRUTH))?.into());
    }
    let sizes = images.iter().map(|image| Size::new(image.width(), image.height()));
    let (sizes, _) = row_size(sizes, output.image.height())?;
    let level = |(image, size): (&Arc<RgbImage>, &Size)| resize(image, size.width, size.height);
    let images = images
        .iter()
        .zip(&sizes)
        .map(level)
        .collect::<kontext::Result<Vec<_>>>()?;
    kontext::io::save_image(&strip(&images.iter().collect::<Vec<_>>(), 1), &compare, &[])?;
    announce(format_args!("wrote {}", compare.display()));
    Ok(())
}
