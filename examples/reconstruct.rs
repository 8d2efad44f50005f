//! A picture through an autoencoder and back: `cargo xtask run --release --example reconstruct -- --vae ae.safetensors --image cat.png`.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use clap::Parser;
use common::say;
use image::imageops::crop_imm;
use kontext::crates::kontext_core::{device, picture};
use kontext::{Autoencoder, Device, Kind, Tiling};
use kontext_bench::metrics::{psnr, ssim};

/// Encode a picture and decode it again; print PSNR and SSIM.
#[derive(Debug, Parser)]
struct Args {
    /// The autoencoder: a folder with config.json and weights, or one safetensors file
    #[arg(long, value_name = "PATH")]
    vae: PathBuf,
    /// The picture. A photo of a cat if not given
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/chelsea.png"))]
    image: PathBuf,
    /// cpu, cuda or cuda:N; the best there is if not given
    #[arg(long)]
    device: Option<String>,
    /// Work in tiles of so many pixels
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    tile: Option<i64>,
    /// Write the reconstruction to this file: .png, .jpg or .webp
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Sides are cut to multiples of this: the autoencoder's 8, and the transformer's 2.
const MULTIPLE: u32 = 16;

fn main() -> ExitCode {
    common::main(|args: Args| {
        if let Some(out) = &args.out {
            kontext::check_writable(out)?;
        }
        let device: Device = args.device.as_deref().map_or_else(|| Ok(device::best()), device::parse)?;
        let image = kontext::open(&args.image)?;
        let (width, height) = (image.width() / MULTIPLE * MULTIPLE, image.height() / MULTIPLE * MULTIPLE);
        if width == 0 || height == 0 {
            bail!(
                "{} is {}x{}: expected at least {MULTIPLE} pixels on a side, give a larger picture",
                args.image.display(),
                image.width(),
                image.height()
            );
        }
        // The centre, as is the custom.
        let (x, y) = ((image.width() - width) / 2, (image.height() - height) / 2);
        let image = crop_imm(&image, x, y, width, height).to_image();
        let vae = Autoencoder::open(&args.vae, Kind::Float, device)?;
        let begin = Instant::now();
        let pixels = picture::to_tensor(&image, Kind::Float, device)?;
        let back = match args.tile {
            Some(tile) => {
                let tiling = Tiling { tile, overlap: tile / 4 / 8 * 8 };
                vae.decode_tiled(&vae.encode_latents_tiled(&pixels, tiling)?, tiling)?
            }
            None => vae.decode(&vae.encode_latents(&pixels)?)?,
        };
        let Some(back) = picture::from_tensor(&back, picture::Rounding::Nearest)?.into_iter().next() else {
            bail!("the autoencoder returned no picture");
        };
        let seconds = begin.elapsed().as_secs_f64();
        say(format_args!("{width}x{height}, {} latent channels, {seconds:.2} s", vae.latent_channels()))?;
        say(format_args!("PSNR {:.2} dB", psnr(&image, &back)?))?;
        say(format_args!("SSIM {:.4}", ssim(&image, &back)?))?;
        if let Some(out) = &args.out {
            kontext::save_picture(&back, out, &[])?;
            say(format_args!("wrote {}", out.display()))?;
        }
        Ok(())
    })
}
