//! How well autoencoders keep pictures, as a table:
//! `cargo xtask run --release --example vae_table -- --images photos --vae FLUX=ae.safetensors --vae TAEF1=taef1.safetensors`.
mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use common::pictures::{listed, usable};
use common::round_trip::round_trip;
use common::{progress, say, write};
use kontext::crates::kontext_core::check_writable;
use kontext::crates::kontext_device::device;
use kontext::image::RgbImage;
use kontext::{Autoencoder, Device, Kind};
use kontext_bench::metrics::Perceptual;
use kontext_bench::reconstruction::{Measurement, PictureSize, Records, Strip, Subject, Table};
use sha2::{Digest, Sha256};

/// Encode and decode a folder of pictures with each autoencoder; print PDist, SSIM and PSNR with standard errors.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of pictures: .png, .jpg or .webp. Those that cannot be used are named and left out
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
    /// `original`: cut around the centre to multiples of 16. A number: the shorter side is resized to it,
    /// and the square in the centre cut out
    #[arg(long, default_value_t, allow_negative_numbers = true)]
    size: PictureSize,
    /// Work in tiles of so many pixels
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    tile: Option<i64>,
    /// cpu, cuda or cuda:N; the best there is if not given
    #[arg(long)]
    device: Option<String>,
    /// Keep each measurement in this folder: a run that was stopped goes on from there
    #[arg(long, alias = "work", value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the table to this file, as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write the table to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write crops of a few pictures, their reconstructions and errors to this file: .png, .jpg or .webp
    #[arg(long, value_name = "FILE")]
    strip: Option<PathBuf>,
    /// Pictures in the strip, evenly over the folder
    #[arg(long, value_name = "N", default_value_t = 3, requires = "strip")]
    strip_pictures: usize,
    /// Side of the strip's crops
    #[arg(long, value_name = "PIXELS", default_value_t = 128, requires = "strip", value_parser = clap::value_parser!(u32).range(1..=1024))]
    strip_side: u32,
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        check_outputs(&args)?;
        let device: Device = args
            .device
            .as_deref()
            .map_or_else(|| Ok(device::best()), device::parse)?;
        let perceptual = args
            .perceptual
            .as_deref()
            .map(|file| Perceptual::open(file, args.heads.as_deref(), device));
        let perceptual = perceptual.transpose()?;
        let vaes = args.vae.iter().map(|(name, path)| open(&args, name, path, device));
        let vaes = vaes.collect::<anyhow::Result<Vec<Vae>>>()?;
        let least = perceptual
            .as_ref()
            .map_or(0, |p| p.features().backbone().least_side() as u32);
        let pictures = usable(&args.images, |path| prepared(&args, path, least))?;

        // Without a folder of their own, the records go when the program ends.
        let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
        let folder = args.out.as_deref().unwrap_or(temporary.path());
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let mut records = Records::open(folder.join("reconstructions.jsonl"))?;

        let shown = args
            .strip
            .as_ref()
            .map_or(BTreeSet::new(), |_| spread(args.strip_pictures, pictures.len()));
        let mut strip = Strip::new(vaes.len(), args.strip_side);
        let mut measurements = Vec::new();
        let bar = progress::bar("measuring", pictures.len() * vaes.len());
        for (number, path) in pictures.iter().enumerate() {
            let (name, original) = (file_name(path), prepared(&args, path, least)?);
            let mut reconstructions = Vec::new();
            for vae in &vaes {
                bar.set_message(vae.name.clone());
                let subject = Subject {
                    vae: &vae.name,
                    setting: &vae.setting,
                    perceptual: perceptual.as_ref(),
                };
                let of = || format!("{} on {}", vae.name, path.display());
                measurements.push(match subject.recorded(&name, &original, &records) {
                    Some(done) if !shown.contains(&number) => done,
                    _ => {
                        let back = round_trip(&vae.model, &original, args.tile, device).with_context(of)?;
                        let done = subject
                            .measure(&name, &original, &back, &mut records)
                            .with_context(of)?;
                        reconstructions.push(back);
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
        tell(&args, &in_rows(measurements, &vaes), perceptual.as_ref(), &strip)
    })
}

struct Vae {
    name: String,
    model: Autoencoder,
    /// What its numbers depend on.
    setting: String,
}

fn open(args: &Args, name: &str, path: &Path, device: Device) -> anyhow::Result<Vae> {
    let model = Autoencoder::open(path, Kind::Float, device).with_context(|| format!("autoencoder {name}"))?;
    let mut setting = digest(path)?;
    for file in args.perceptual.iter().chain(&args.heads) {
        setting.push_str(&format!(", {}", digest(file)?));
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

/// SHA-256 of a file, or of all files of a folder by their names.
fn digest(path: &Path) -> anyhow::Result<String> {
    let mut files = if path.is_dir() {
        listed(path)?
    } else {
        vec![path.to_owned()]
    };
    files.retain(|file| file.is_file());
    let mut sum = Sha256::new();
    for file in files {
        let of = || format!("cannot read {}", file.display());
        sum.update(file_name(&file).as_bytes());
        std::io::copy(&mut std::fs::File::open(&file).with_context(of)?, &mut sum).with_context(of)?;
    }
    Ok(format!("sha256 {:x}", sum.finalize()))
}

/// A picture at the size that was asked for, unless it is smaller than the network takes.
fn prepared(args: &Args, path: &Path, least: u32) -> anyhow::Result<RgbImage> {
    let picture = args
        .size
        .prepare(&kontext::open(path)?)
        .with_context(|| path.display().to_string())?;
    let (width, height) = picture.dimensions();
    if width.min(height) < least {
        let of = path.display();
        bail!("{of}: the network of --perceptual takes {least}x{least} pixels and more, got {width}x{height}");
    }
    Ok(picture)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// So many of `all` numbers, evenly spread.
fn spread(count: usize, all: usize) -> BTreeSet<usize> {
    (0..count.min(all))
        .map(|n| (2 * n + 1) * all / (2 * count.min(all)))
        .collect()
}

/// By autoencoder, in the order of the command line.
fn in_rows(mut measurements: Vec<Measurement>, vaes: &[Vae]) -> Vec<Measurement> {
    measurements.sort_by_key(|m| vaes.iter().position(|vae| vae.name == m.vae));
    measurements
}

fn check_outputs(args: &Args) -> anyhow::Result<()> {
    let names: BTreeSet<&String> = args.vae.iter().map(|(name, _)| name).collect();
    if names.len() < args.vae.len() {
        bail!("two autoencoders have the same name; expected a name of its own for each --vae NAME=PATH");
    }
    for path in args.csv.iter().chain(&args.markdown) {
        check_writable(path)?;
    }
    args.strip.as_deref().map(kontext::check_writable).transpose()?;
    Ok(())
}

fn tell(
    args: &Args,
    measurements: &[Measurement],
    perceptual: Option<&Perceptual>,
    strip: &Strip,
) -> anyhow::Result<()> {
    let table = Table::of(measurements, perceptual.map(Perceptual::name))?;
    say(table.to_string().trim_end())?;
    for (path, text) in [(&args.csv, table.csv()), (&args.markdown, table.markdown())] {
        let Some(path) = path else { continue };
        write(path, &text)?;
        say(format_args!("wrote {}", path.display()))?;
    }
    if let (Some(path), Some(picture)) = (&args.strip, strip.picture()) {
        kontext::save_picture(&picture, path, &[])?;
        say(format_args!("wrote {}", path.display()))?;
    }
    Ok(())
}

fn named(text: &str) -> Result<(String, PathBuf), &'static str> {
    match text.split_once('=') {
        Some((name, path)) if !name.trim().is_empty() && !path.is_empty() => {
            Ok((name.trim().to_owned(), PathBuf::from(path)))
        }
        _ => Err("expected NAME=PATH, such as TAEF1=taef1.safetensors"),
    }
}
