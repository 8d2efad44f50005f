//! Compares the reconstructions of autoencoders in a table:
//! `cargo xtask run --release --example vae_table -- --images photos --vae FLUX=ae.safetensors --vae TAEF1=taef1.safetensors`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use kontext::image::RgbImage;
use kontext::{Autoencoder, Device, Kind, Size};
use kontext_bench::metrics::{Backbone, Features, Perceptual};
use kontext_bench::reconstruction::{
    Distances, ImageSize, Measurement, PUBLISHED_SIDE, Records, Strip, Subject, Table,
};
use kontext_cli::args::{device, positive};
use kontext_cli::identity::sha256;
use kontext_cli::images::{self, usable};
use kontext_cli::outputs::Outputs;
use kontext_cli::{announce, create_folder, note, progress, round_trip, save, say, typed};

/// File of the measurements in `--out`.
const RECORDS: &str = "reconstructions.jsonl";

/// Encode and decode a folder of images with each autoencoder; print PDist, SSIM and PSNR with standard errors.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of images: .png, .jpg or .webp. Those that cannot be used are named and left out
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// An autoencoder and its name in the table: a folder with config.json and weights, or one safetensors
    /// file. May be given several times
    #[arg(long, value_name = "NAME=PATH", required = true, value_parser = named)]
    vae: Vec<(String, PathBuf)>,
    /// The network of the perceptual distance: AlexNet, VGG16 or SqueezeNet 1.1 as safetensors.
    /// Without it, the distance is left out
    #[arg(long, value_name = "FILE")]
    perceptual: Option<PathBuf>,
    /// LPIPS's weights for the network's channels, as safetensors
    #[arg(long, value_name = "FILE", requires = "perceptual")]
    heads: Option<PathBuf>,
    /// The network of a second distance, by cosines. With torchvision's VGG16 as safetensors it is most likely the
    /// PDist of the paper on FLUX.1 Kontext, whose numbers are printed below
    #[arg(long, value_name = "FILE")]
    cosine: Option<PathBuf>,
    /// `original`: cut around the centre to multiples of 16. A number: the shorter side is resized to it,
    /// and the square in the centre cut out
    #[arg(long, default_value_t, allow_negative_numbers = true)]
    size: ImageSize,
    /// Work in tiles of this many pixels
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    tile: Option<i64>,
    /// cpu, cuda or cuda:N; the best there is if not given
    #[arg(long)]
    device: Option<String>,
    /// Keep each measurement in this folder: a stopped run continues from there
    #[arg(long, alias = "work", value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the table to this file, as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the table to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write crops of a few images, their reconstructions and errors to this file: .png, .jpg or .webp
    #[arg(long, value_name = "FILE")]
    strip: Option<PathBuf>,
    /// Images in the strip, evenly spread over the folder
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        requires = "strip",
        alias = "strip-pictures",
        value_parser = positive::<usize>,
        allow_negative_numbers = true
    )]
    strip_images: usize,
    /// Side of the strip's crops
    #[arg(long, value_name = "PIXELS", default_value_t = 128, requires = "strip", value_parser = clap::value_parser!(u32).range(1..=1024))]
    strip_side: u32,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        check_outputs(&args)?;
        let device = device(args.device.as_deref())?;
        let perceptual = args
            .perceptual
            .as_deref()
            .map(|file| Perceptual::open(file, args.heads.as_deref(), device));
        let perceptual = perceptual.transpose()?;
        let cosine = args.cosine.as_deref().map(|file| Features::open(file, device));
        let cosine = cosine.transpose()?.map(Perceptual::cosine);
        let networks = Distances {
            perceptual: perceptual.as_ref(),
            cosine: cosine.as_ref(),
        };
        warn_of_size(&args, networks);
        let vaes = args.vae.iter().map(|(name, path)| open(&args, name, path, device));
        let vaes = vaes.collect::<anyhow::Result<Vec<Vae>>>()?;
        let least = [networks.perceptual, networks.cosine].into_iter().flatten();
        let least = least.map(|network| network.features().backbone().least_side() as u32);
        let least = least.max().unwrap_or_default();
        let images = usable(&args.images, |path| prepared(&args, path, least))?;

        // Without --out, the records are removed when the program ends.
        let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
        let folder = args.out.as_deref().unwrap_or(temporary.path());
        create_folder(folder)?;
        let mut records = Records::open(folder.join(RECORDS))?;

        let shown = args
            .strip
            .as_ref()
            .map_or(BTreeSet::new(), |_| spread(args.strip_images, images.len()));
        let mut strip = Strip::new(vaes.len(), args.strip_side);
        if let Some(path) = &args.strip {
            let [width, height] = strip.size(shown.len());
            kontext::io::check_size(path, Size::new(width, height))?;
        }
        let mut measurements = Vec::new();
        let bar = progress::bar("measuring", images.len() * vaes.len());
        for (number, path) in images.iter().enumerate() {
            let (name, original) = (file_name(path), prepared(&args, path, least)?);
            let mut reconstructions = Vec::new();
            for vae in &vaes {
                bar.set_message(vae.name.clone());
                let subject = Subject {
                    vae: &vae.name,
                    setting: &vae.setting,
                    perceptual: networks.perceptual,
                    cosine: networks.cosine,
                };
                let context = || format!("{} on {}", vae.name, path.display());
                measurements.push(match subject.recorded(&name, &original, &records) {
                    Some(done) if !shown.contains(&number) => done,
                    _ => {
                        let decoded = round_trip(&vae.model, &original, args.tile, device).with_context(context)?;
                        let done = subject
                            .measure(&name, &original, &decoded, &mut records)
                            .with_context(context)?;
                        reconstructions.push(decoded);
                        done
                    }
                });
                bar.inc(1);
            }
            if shown.contains(&number) {
                strip.add(&original, &reconstructions)?;
            }
        }
        bar.finish_and_clear();
        report(&args, &in_rows(measurements, &vaes), networks, &strip)
    })
}

/// An autoencoder of the command line.
struct Vae {
    name: String,
    model: Autoencoder,
    /// The files and options that its numbers depend on.
    setting: String,
}

fn open(args: &Args, name: &str, path: &Path, device: Device) -> anyhow::Result<Vae> {
    let model = Autoencoder::open(path, Kind::Float, device).with_context(|| format!("autoencoder {name}"))?;
    let mut setting = sha256(path)?;
    for file in args.perceptual.iter().chain(&args.heads).chain(&args.cosine) {
        setting.push_str(&format!(", {}", sha256(file)?));
    }
    if let Some(tile) = args.tile {
        setting.push_str(&format!(", tiles of {tile}"));
    }
    Ok(Vae {
        name: name.to_owned(),
        model,
        setting,
    })
}

/// Opens an image at the requested size; one smaller than `least` pixels, the network's minimum, is an error.
fn prepared(args: &Args, path: &Path, least: u32) -> anyhow::Result<RgbImage> {
    let image = args
        .size
        .prepare(&kontext::open_image(path)?)
        .with_context(|| path.display().to_string())?;
    let (width, height) = image.dimensions();
    if width.min(height) < least {
        let name = path.display();
        bail!(
            "{name}: the network of --perceptual or --cosine takes {least}x{least} pixels and more, got {width}x{height}"
        );
    }
    Ok(image)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns `count` of the first `all` numbers, evenly spread.
fn spread(count: usize, all: usize) -> BTreeSet<usize> {
    (0..count.min(all))
        .map(|n| (2 * n + 1) * all / (2 * count.min(all)))
        .collect()
}

/// Sorts by autoencoder, in the order of the command line.
fn in_rows(mut measurements: Vec<Measurement>, vaes: &[Vae]) -> Vec<Measurement> {
    measurements.sort_by_key(|m| vaes.iter().position(|vae| vae.name == m.vae));
    measurements
}

fn check_outputs(args: &Args) -> anyhow::Result<()> {
    let names: BTreeSet<&String> = args.vae.iter().map(|(name, _)| name).collect();
    if names.len() < args.vae.len() {
        bail!("two autoencoders have the same name; expected a name of its own for each --vae NAME=PATH");
    }
    let mut outputs = Outputs::default();
    // A folder that cannot be read is reported when its images are.
    for image in images::of(&args.images).iter().flatten() {
        outputs.read("--images", image);
    }
    args.vae.iter().for_each(|(_, path)| outputs.weights("--vae", path));
    let networks = [
        ("--perceptual", &args.perceptual),
        ("--heads", &args.heads),
        ("--cosine", &args.cosine),
    ];
    for (flag, file) in networks {
        if let Some(file) = file {
            outputs.weights(flag, file);
        }
    }
    if let Some(folder) = &args.out {
        outputs.read("--out", &folder.join(RECORDS));
    }
    for (flag, path) in [("--csv", &args.csv), ("--markdown", &args.markdown)] {
        if let Some(path) = path {
            outputs.file(flag, path)?;
        }
    }
    args.strip
        .as_deref()
        .map_or(Ok(()), |path| outputs.image("--strip", path))
}

/// Notes that the published numbers, which the table shows, are of another size.
fn warn_of_size(args: &Args, networks: Distances<'_>) {
    let is_vgg16 = |network: &Perceptual| network.features().backbone() == Backbone::Vgg16;
    if networks.cosine.is_some_and(is_vgg16) && args.size != ImageSize::Square(PUBLISHED_SIDE) {
        note(format_args!(
            "warning: the published numbers are of {PUBLISHED_SIDE}x{PUBLISHED_SIDE} pixels, and these of another size; \
             --size {PUBLISHED_SIDE} measures there"
        ));
    }
}

/// Prints and writes the results.
fn report(args: &Args, measurements: &[Measurement], networks: Distances<'_>, strip: &Strip) -> anyhow::Result<()> {
    let table = Table::of(measurements, networks)?;
    // The files are written also if the reader of stdout is gone.
    let said = say(table.to_string().trim_end());
    for (path, text) in [(&args.csv, table.csv()), (&args.markdown, table.markdown())] {
        let Some(path) = path else { continue };
        save(path, &text)?;
    }
    if let (Some(path), Some(image)) = (&args.strip, strip.image()) {
        kontext::io::save_image(&image, path, &[])?;
        announce(format_args!("wrote {}", path.display()));
    }
    said
}

/// Parses `NAME=PATH`.
fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.trim().is_empty() && !path.is_empty() => {
            let path = typed::path(path).map_err(|error| error.to_string())?;
            Ok((name.trim().to_owned(), path))
        }
        _ => Err("expected NAME=PATH, such as TAEF1=taef1.safetensors".to_owned()),
    }
}
