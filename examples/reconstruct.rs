//! Encodes an image and decodes it again:
//! `cargo xtask run --release --example reconstruct -- --vae ae.safetensors --image cat.png`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use kontext::{Autoencoder, Kind, Size};
use kontext_bench::metrics::{psnr, ssim};
use kontext_bench::reconstruction::ImageSize;
use kontext_cli::args::device;
use kontext_cli::outputs::Outputs;
use kontext_cli::{announce, round_trip, say, shipped};

/// Encode an image and decode it again; print PSNR and SSIM.
#[derive(Debug, Parser)]
struct Args {
    /// The autoencoder: a folder with config.json and weights, or one safetensors file
    #[arg(long, value_name = "PATH")]
    vae: PathBuf,
    /// The image. A photo of a cat if not given
    #[arg(long, value_name = "FILE", default_value_os_t = shipped::data("chelsea.png"))]
    image: PathBuf,
    /// cpu, cuda or cuda:N; the best there is if not given
    #[arg(long)]
    device: Option<String>,
    /// Work in tiles of this many pixels
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    tile: Option<i64>,
    /// Write the reconstruction to this file: .png, .jpg or .webp
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        if let Some(out) = &args.out {
            let mut outputs = Outputs::default();
            outputs.read("--image", &args.image);
            outputs.weights("--vae", &args.vae);
            outputs.image("--out", out)?;
        }
        let device = device(args.device.as_deref())?;
        let image = kontext::open_image(&args.image)?;
        let image = ImageSize::Original
            .prepare(&image)
            .with_context(|| args.image.display().to_string())?;
        if let Some(out) = &args.out {
            kontext::io::check_size(out, Size::new(image.width(), image.height()))?;
        }
        let vae = Autoencoder::open(&args.vae, Kind::Float, device)?;
        let begin = Instant::now();
        let decoded = round_trip(&vae, &image, args.tile, device)?;
        let seconds = begin.elapsed().as_secs_f64();
        if let Some(out) = &args.out {
            kontext::io::save_image(&decoded, out, &[])?;
        }
        let (width, height) = image.dimensions();
        say(format_args!(
            "{width}x{height}, {} latent channels, {seconds:.2} s",
            vae.latent_channels()
        ))?;
        say(format_args!("PSNR {:.2} dB", psnr(&image, &decoded)?))?;
        say(format_args!("SSIM {:.4}", ssim(&image, &decoded)?))?;
        if let Some(out) = &args.out {
            announce(format_args!("wrote {}", out.display()));
        }
        Ok(())
    })
}
