//! Compares the maps of previews, times them, and shows the previews of an edit:
//! `cargo xtask run --release --example previews -- --vae taef1.safetensors --photos kodak`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Parser;
use kontext::crates::kontext_core::images::{Rounding, from_levels, resize, to_levels, to_tensor};
use kontext::crates::kontext_sampler::{Grid, pack, unpack};
use kontext::crates::kontext_vae::{LatentFit, LatentMap};
use kontext::image::RgbImage;
use kontext::{Autoencoder, Device, Event, Kind, Pipeline, Preview, Request, Tensor};
use kontext_bench::reconstruction::ImageSize;
use kontext_cli::images::usable;
use kontext_cli::{announce, say, shipped, strip};

/// The edit of the strip, which is that of the program `edit`.
const PROMPT: &str = "turn him into a cook";
const STEPS: usize = 8;
/// Side of the strip's images, in pixels.
const SHOWN: u32 = 80;
/// Repetitions of what takes less than a millisecond.
const REPETITIONS: usize = 30;

/// Compare the linear maps of previews on the latents of FLUX.1, time them, and show the previews of an edit.
#[derive(Debug, Parser)]
struct Args {
    /// A tiny autoencoder for the latents of FLUX.1, TAEF1
    #[arg(long, value_name = "FILE")]
    vae: Option<PathBuf>,
    /// Folder of images: a map is fitted to every other one of them, and the others are held out
    #[arg(long, value_name = "DIR", requires = "vae")]
    photos: Option<PathBuf>,
    /// Compare the time of a preview of 1024x1024 pixels with that of a step of the small model
    #[arg(long)]
    time: bool,
    /// Write the previews of an edit by the small model, in 8 steps, and its result to this file
    #[arg(long, value_name = "FILE")]
    strip: Option<PathBuf>,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        if args.photos.is_none() && !args.time && args.strip.is_none() {
            bail!("nothing to do: give --vae and --photos, --time or --strip");
        }
        let open = |path: &PathBuf| Autoencoder::open(path, Kind::Float, Device::Cpu);
        let vae = args.vae.as_ref().map(open).transpose()?;
        if let (Some(vae), Some(photos)) = (&vae, &args.photos) {
            compare(vae, photos)?;
        }
        if args.time {
            time(vae.as_ref())?;
        }
        match &args.strip {
            Some(path) => show(path),
            None => Ok(()),
        }
    })
}

/// A photo: pixels [1, 3, H, W], latents [1, 16, H/8, W/8].
struct Photo {
    pixels: Tensor,
    latents: Tensor,
}

/// Prints the fitted map, and the errors of all maps on the photos that it was fitted to and on the others.
fn compare(vae: &Autoencoder, folder: &Path) -> anyhow::Result<()> {
    let open = |path: &Path| Ok(ImageSize::Original.prepare(&kontext::open_image(path)?)?);
    let mut photos = Vec::new();
    for path in usable(folder, |path| open(path))? {
        let pixels = to_tensor(&open(&path)?, Kind::Float, Device::Cpu)?;
        let latents = vae.encode_latents(&pixels)?;
        photos.push(Photo { pixels, latents });
    }
    let fitted: Vec<&Photo> = photos.iter().step_by(2).collect();
    let held_out: Vec<&Photo> = photos.iter().skip(1).step_by(2).collect();
    let mut fit = LatentFit::new(vae.latent_channels())?;
    for photo in &fitted {
        fit.add(&photo.latents, &photo.pixels)?;
    }
    let own = fit.solve()?;
    let mut mean = Tensor::zeros([1, 3, 1, 1], (Kind::Float, Device::Cpu));
    for photo in &fitted {
        mean += photo.pixels.mean_dim([2_i64, 3].as_slice(), true, Kind::Float) / fitted.len() as f64;
    }
    for row in own.weights().iter().chain([&own.bias()]) {
        say(format_args!("[{:.4}, {:.4}, {:.4}],", row[0], row[1], row[2]))?;
    }
    let maps = [
        ("`fitted`, as the library has it", LatentMap::flux()),
        ("a fit to these photos", own),
        ("`comfyui`", LatentMap::comfy_ui()),
        ("`sdcpp`", LatentMap::stable_diffusion_cpp()),
    ];
    say("| colours | fitted photos | held-out photos |\n|---|---|---|")?;
    let row = |name: &str, colours: &dyn Fn(&Photo) -> anyhow::Result<Tensor>| -> anyhow::Result<()> {
        let (on_fitted, on_others) = (rms(&fitted, colours)?, rms(&held_out, colours)?);
        say(format_args!("| {name} | {on_fitted:.2} | {on_others:.2} |"))
    };
    row("the photos' mean colour", &|_| Ok(mean.shallow_clone()))?;
    for (name, map) in maps {
        let colours = map.on(Device::Cpu)?;
        row(name, &|photo| Ok(colours.of(&photo.latents)?))?;
    }
    let pooled = |latents: &Tensor| latents.f_avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None);
    row("the decoder, of latents averaged by 2", &|photo| {
        Ok(vae.decode(&pooled(&photo.latents)?)?)
    })?;
    row("the decoder", &|photo| Ok(vae.decode(&photo.latents)?))
}

/// Returns the root mean squared error of colours in levels of 255, over areas of 8x8 pixels.
fn rms(photos: &[&Photo], colours: &dyn Fn(&Photo) -> anyhow::Result<Tensor>) -> anyhow::Result<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for photo in photos {
        let [height, width] = [2, 3].map(|dim| photo.latents.size()[dim]);
        let mean = |image: &Tensor| image.f_adaptive_avg_pool2d([height, width]);
        let shown = colours(photo)?.f_clamp(-1.0, 1.0)?;
        // One colour is one for each area.
        let shown = if shown.size()[2] == 1 { shown } else { mean(&shown)? };
        let squares = (shown - mean(&photo.pixels)?).square();
        sum += squares.sum(Kind::Double).double_value(&[]);
        count += squares.numel() as f64;
    }
    Ok((sum / count).sqrt() * 127.5)
}

fn time(vae: Option<&Autoencoder>) -> anyhow::Result<()> {
    let pipe = Pipeline::builder().device(Device::Cpu).load(shipped::model())?;
    let source = kontext::open_image(shipped::data("emoji-source.png"))?;
    let request = Request::edit(resize(&source, 1024, 1024)?, PROMPT)
        .size(1024, 1024)
        .steps(3)
        .seed(1);
    let (mut last, mut step) = (Instant::now(), Duration::MAX);
    pipe.run_with(&request, |event| {
        if let Event::Step { done, .. } = event {
            if done > 1 {
                step = step.min(last.elapsed());
            }
            last = Instant::now();
        }
        ControlFlow::Continue(())
    })?;
    let seconds = |time: Duration| time.as_secs_f64();
    say(format_args!(
        "a step of the small model at 1024x1024: {:.3} s",
        seconds(step)
    ))?;
    let tokens = pack(&Tensor::randn([1, 16, 128, 128], (Kind::Float, Device::Cpu)))?;
    let grid = Grid { rows: 64, cols: 64 };
    let colours = LatentMap::flux().on(Device::Cpu)?;
    let mut fastest = Duration::MAX;
    for _ in 0..REPETITIONS {
        let begin = Instant::now();
        let image = colours.of(&unpack(&tokens, grid)?)?;
        from_levels(&to_levels(&image, Rounding::Nearest)?)?;
        fastest = fastest.min(begin.elapsed());
    }
    let share = |time: Duration| 100.0 * seconds(time) / seconds(step);
    say(format_args!(
        "a preview by a map: {:.3} ms, {:.3} % of it",
        1e3 * seconds(fastest),
        share(fastest)
    ))?;
    if let Some(vae) = vae {
        let latents = Tensor::randn([1, 16, 64, 64], (Kind::Float, Device::Cpu));
        let begin = Instant::now();
        let image = vae.decode(&latents)?;
        let tiny = begin.elapsed();
        drop(image);
        say(format_args!(
            "one of 512x512 by the decoder: {:.3} s, {:.1} % of it",
            seconds(tiny),
            share(tiny)
        ))?;
    }
    Ok(())
}

fn show(path: &Path) -> anyhow::Result<()> {
    kontext::io::check_image_file(path)?;
    let pipe = Pipeline::builder().device(Device::Cpu).load(shipped::model())?;
    let source = kontext::open_image(shipped::data("emoji-source.png"))?;
    let request = Request::edit(&source, PROMPT).steps(STEPS).seed(7);
    let mut images: Vec<RgbImage> = Vec::new();
    let output = pipe.run_with(&request.preview(Preview::default().every(Duration::ZERO)), |event| {
        if let Event::Preview { image, .. } = event {
            images.push(image.clone());
        }
        ControlFlow::Continue(())
    })?;
    images.push(output.image);
    let level = |image: &RgbImage| resize(image, SHOWN, SHOWN);
    let images = images.iter().map(level).collect::<kontext::Result<Vec<_>>>()?;
    kontext::io::save_image(&strip(&images.iter().collect::<Vec<_>>(), 1), path, &[])?;
    announce(format_args!("wrote {}", path.display()));
    Ok(())
}
