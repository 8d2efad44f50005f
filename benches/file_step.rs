//! One denoising step of a transformer in a file, on the CPU, in seconds.
//!
//! ```text
//! cargo bench --bench file_step -- FILE.gguf --write              # writes it: random, of full width, in Q8_0
//! cargo bench --bench file_step -- FILE.gguf --side 512 --bf16    # times an edit at 512x512
//! ```
//! `compare_sd.py`, next to this file, compares the times with those of stable-diffusion.cpp on the same file.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A benchmark that cannot run stops, and its results are printed.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use kontext::crates::kontext_dit::{RunInput, names};
use kontext::crates::kontext_formats::quant::{Format, pack};
use kontext::crates::kontext_formats::{StreamedTensor, Value, save, write_gguf};
use kontext::crates::kontext_sampler::ids::grid_ids;
use kontext::crates::kontext_text::ClipEncoder;
use kontext::image::RgbImage;
use kontext::{
    Checkpoint, ClipConfig, Conditioning, Device, Dit, DitConfig, Kind, Origin, Result, Size, Tensor, Tokens, Weights,
};

/// Text tokens of stable-diffusion.cpp.
const TEXT: i64 = 256;
/// Number of denoising steps, diffusers' default, and of those that are timed.
const STEPS: usize = 28;
const TIMED: usize = 3;

/// Time steps of a transformer.
#[derive(Debug, Parser)]
struct Args {
    /// The transformer
    file: PathBuf,
    /// Write it instead (2 double, 4 single blocks), and next to it clip_l.safetensors and reference.png
    #[arg(long)]
    write: bool,
    /// Width and height of target and reference, in pixels
    #[arg(long, default_value_t = 512)]
    side: u32,
    /// Compute in bf16 instead of f32
    #[arg(long)]
    bf16: bool,
    /// An argument that cargo gives
    #[arg(long, hide = true)]
    bench: bool,
}

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// Lists the weights of a model, each with its shape.
fn weights_of<T>(build: impl FnOnce(&Weights) -> Result<T>) -> impl Iterator<Item = (String, Vec<i64>)> {
    let blank = Weights::blank();
    build(&blank).unwrap();
    blank.shapes().into_iter()
}

/// Draws a weight of variance 1 / fan-in.
fn weight(shape: &[i64]) -> Tensor {
    random(shape) * (shape.iter().skip(1).product::<i64>() as f64).powf(-0.5)
}

/// Writes a transformer as `kontext::quantize` does, and the other files that stable-diffusion.cpp needs.
fn write(file: &Path) {
    let folder = file.parent().unwrap();
    let config = DitConfig {
        double_blocks: 2,
        single_blocks: 4,
        ..DitConfig::kontext_dev()
    };
    let tensor = |(name, shape): (String, Vec<i64>)| {
        let format = match shape.len() {
            2 if names::is_block(&name) => Format::Q8_0,
            2 => Format::Bf16,
            _ => Format::F32,
        };
        let sides: Vec<usize> = shape.iter().map(|side| side.unsigned_abs() as usize).collect();
        StreamedTensor::new(name, format, &sides.clone(), move || {
            let values = Vec::<f32>::try_from(weight(&shape).reshape([-1])).unwrap();
            Ok(pack(format, &values, *sides.last().unwrap())?.into_parts().0.into())
        })
    };
    let metadata = [("general.architecture", Value::Text("flux".to_owned()))];
    write_gguf(
        file,
        &metadata,
        weights_of(|w| Dit::new(w, &config, |_| ())).map(tensor),
    )
    .unwrap();

    let clip = weights_of(|w| ClipEncoder::new(w, &ClipConfig::large(), Kind::Float));
    let clip: Vec<_> = clip
        .map(|(name, shape)| (name, weight(&shape).to_kind(Kind::Half)))
        .collect();
    save(folder.join("clip_l.safetensors"), &clip, None).unwrap();
    RgbImage::new(256, 256).save(folder.join("reference.png")).unwrap();
}

/// Times steps of an edit, each with its share of one `Dit::prepare`, after one that is not timed.
fn time(file: &Path, kind: Kind, side: u32) -> Vec<f64> {
    let (weights, config) = Checkpoint::transformer_in(file).unwrap();
    let dit = Dit::new(&weights.at_most(kind), &config, |_| ()).unwrap();
    let grid = Size::new(side, side).grid().unwrap();
    let ids = |t: i64| grid_ids(grid, Origin { t, y: 0, x: 0 }).unwrap();
    let features = [1, grid.tokens(), config.in_channels];
    let input = RunInput {
        conditioning: &Conditioning {
            // The model computes in its kind.
            prompt_embeds: random(&[1, TEXT, config.context_dim]).to_kind(kind),
            pooled: random(&[1, config.pooled_dim]),
        },
        target_ids: &ids(0),
        context: Some(&Tokens::new(random(&features), ids(1)).unwrap()),
        times: &[500.0; STEPS],
        guidance: Some(2500.0),
    };
    let begin = Instant::now();
    let run = dit.prepare(&input).unwrap();
    let share = begin.elapsed().as_secs_f64() / STEPS as f64;
    let target = random(&features).to_kind(kind);
    let step = |_| {
        let begin = Instant::now();
        drop(dit.forward(&run, 0, &target).unwrap());
        share + begin.elapsed().as_secs_f64()
    };
    (0..=TIMED).map(step).skip(1).collect()
}

fn main() {
    let args = Args::parse();
    if args.write {
        return write(&args.file);
    }
    let kind = if args.bf16 { Kind::BFloat16 } else { Kind::Float };
    for seconds in time(&args.file, kind, args.side) {
        println!("{seconds:.4}");
    }
}
