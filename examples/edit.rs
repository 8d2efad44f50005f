//! Edits an image: `cargo xtask run --release --example edit -- --image cat.png --prompt "make it winter"`.
//!
//! Or all images of a folder, or the requests of a manifest: `--image photos --out winter`, `--manifest edits.csv --out
//! results`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use kontext::crates::kontext_core::images::resize;
use kontext::image::RgbImage;
use kontext::io::check_transparent_file;
use kontext::{Request, Size};
use kontext_bench::kontextbench::Shard;
use kontext_cli::args::{RunArgs, color, free_text};
use kontext_cli::edits::{self, Defaults, EditsArgs, Source};
use kontext_cli::mask_args::MaskArgs;
use kontext_cli::run::Files;
use kontext_cli::{announce, note, row_size, shipped, strip};

/// Files of the default edit. The small model was not trained on its result for this instruction.
const SOURCE: &str = "emoji-source.png";
const TRUTH: &str = "emoji-truth.png";
const PROMPT: &str = "turn him into a cook";

/// File of the result if none is named.
const OUT: &str = "edit.png";

/// Red, green and blue.
type Ground = [u8; 3];

/// Edit an image with FLUX.1 Kontext, or many: the images of a folder, or the requests of a manifest.
///
/// Many edits are written to the folder --out. The same command goes on after any end with those that are missing.
#[derive(Debug, Parser)]
struct Args {
    /// The image to edit, and further references. An emoji if not given. Of a folder or a quoted pattern, such as
    /// 'photos/*.jpg', each image is edited
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Instruction of the edit; "turn him into a cook" if not given. Lines of a manifest may have their own, and fill
    /// {name} with their field of this name
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = free_text)]
    prompt: Option<String>,
    /// Strength of the change, in (0, 1]: below 1 the run starts from the image
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    strength: f64,
    /// Keep the transparency of the image to edit in the result, which is then a .png or .webp
    #[arg(long)]
    keep_alpha: bool,
    /// Colour under transparent parts of the images that the model sees: ff8000 for orange
    #[arg(long, value_name = "COLOR", default_value = "ffffff", value_parser = color)]
    ground: Ground,
    /// The file to write: .png, .jpg or .webp; edit.png if not given. An existing one is replaced. Of many edits the
    /// folder, in which only --overwrite replaces files
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Write reference images and result side by side to this file; edit-compared.png if no --image is given
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    place: MaskArgs,
    #[command(flatten)]
    many: EditsArgs,
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(source) = Source::of(&args.image, &args.many)? {
        return run_many(args, &source);
    }
    if args.many.shard != Shard::default() {
        bail!("--shard is of many edits; name a folder, a pattern or a manifest");
    }
    let demonstration = args.image.is_empty();
    if demonstration && !args.many.reference.is_empty() {
        bail!("--reference is next to an image to edit; name it by --image");
    }
    let mut images = args.image.clone();
    images.extend(args.many.reference.iter().cloned());
    let mut compare = args.compare.clone();
    if demonstration {
        images.push(shipped::data(SOURCE));
        compare = compare.or(Some("edit-compared.png".into()));
    }
    let prompt = args.prompt.as_deref().unwrap_or(PROMPT);
    let out = args.out.clone().unwrap_or(OUT.into());
    if args.keep_alpha {
        check_transparent_file(&out)?;
    }
    let mut request = Request::generate(prompt).strength(args.strength);
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
    let request = args.place.apply(args.run.apply(request)?)?;
    images.extend(args.place.files().map(Path::to_owned));
    if args.run.plan && args.compare.is_some() {
        note("warning: --compare has no effect with --plan; leave one of them out");
    }
    let files = Files {
        out: &out,
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
    if demonstration && prompt == PROMPT {
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

/// Edits all images or requests of a source.
fn run_many(args: &Args, source: &Source) -> anyhow::Result<()> {
    if args.compare.is_some() {
        bail!("--compare is of one edit; leave it out with a folder, a pattern or a manifest");
    }
    if !args.place.is_empty() {
        bail!(
            "masks, --outpaint, --crop and --register are of one edit; leave them out with a folder, a pattern or a manifest"
        );
    }
    let out = args.out.as_ref();
    let out = out.context(
        "many images are edited, those of a folder, a pattern or a manifest; name the folder of the results by --out",
    )?;
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let request = args.run.apply(Request::generate(prompt).strength(args.strength))?;
    let defaults = Defaults {
        request: &request,
        has_prompt: args.prompt.is_some(),
    };
    edits::run(source, &args.run, &args.many, defaults, out)
}
