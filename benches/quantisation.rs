//! Quality of quantised weights and of products in fp8, as the table of docs/quantisation.md: distances of the shipped
//! model's edits to those in f32, and of the velocity of blocks of full width with random weights.
//!
//! ```text
//! cargo bench --bench quantisation -- --perceptual squeezenet_v1.1_caffe.safetensors
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A benchmark that cannot run stops, and its results are printed.

use std::path::{Path, PathBuf};

use clap::Parser;
use kontext::crates::kontext_core::{check, noise};
use kontext::crates::kontext_dit::{RunInput, names};
use kontext::crates::kontext_formats::save;
use kontext::crates::kontext_sampler::ids::grid_ids;
use kontext::image::RgbImage;
use kontext::{
    Conditioning, Device, Dit, DitConfig, Fp8Products, Grid, Kind, Origin, Pipeline, PipelineBuilder, Quantize,
    Request, Tensor, Tokens, Weights,
};
use kontext_bench::metrics::{Perceptual, psnr};
use kontext_cli::shipped;

/// Edits of `examples/data/emoji-source.png`.
const PROMPTS: [&str; 6] = [
    "turn him into a cook",
    "make it greyscale",
    "make the background pink",
    "make it sepia",
    "make her a health worker",
    "make it a woman in flat style",
];
/// Tokens of text, and the grid of the target and of the reference.
const TEXT: i64 = 128;
const GRID: Grid = Grid { rows: 12, cols: 16 };

/// Measure the quality of quantised weights.
#[derive(Debug, Parser)]
struct Args {
    /// Seeds of each edit, from 1 on
    #[arg(long, default_value_t = 8)]
    seeds: u64,
    /// The network of the perceptual distance, as safetensors; left out without it
    #[arg(long)]
    perceptual: Option<PathBuf>,
    /// Leave out the blocks of full width, which take 9 GB of memory
    #[arg(long)]
    small: bool,
    /// An argument that cargo gives
    #[arg(long, hide = true)]
    bench: bool,
}

/// A form of the weights of a transformer's blocks, or of its arithmetic.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Bf16,
    Packed(Quantize),
    Fp8Products,
    Nf4,
}

const FORMS: [(&str, Form); 7] = [
    ("bf16 arithmetic", Form::Bf16),
    ("Q8_0", Form::Packed(Quantize::Q8_0)),
    ("int8, by row", Form::Packed(Quantize::Int8)),
    ("fp8 weights, by row", Form::Packed(Quantize::Fp8)),
    ("fp8 products, by row", Form::Fp8Products),
    ("NF4, blocks of 64", Form::Nf4),
    ("Q4_0", Form::Packed(Quantize::Q4_0)),
];

/// Rounds a matrix to NF4 in blocks of 64 elements, as bitsandbytes does.
fn nf4(weight: &Tensor) -> Tensor {
    let levels = [
        -1.0_f32,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_4,
        -0.184_773_43,
        -0.091_050_04,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ];
    let middles: Vec<f32> = levels.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    let blocks = weight.to_kind(Kind::Float).reshape([-1, 64]);
    let largest = blocks.abs().amax([1], true).clamp_min(1e-30);
    let codes = (blocks / &largest).bucketize(&Tensor::from_slice(&middles), false, false);
    let values = Tensor::from_slice(&levels)
        .index_select(0, &codes.flatten(0, -1))
        .reshape(codes.size())
        * largest;
    values.reshape(weight.size())
}

/// Returns `true` for the matrices that a load quantises on a CPU.
fn is_quantised(name: &str, value: &Tensor) -> bool {
    names::is_block(name) && !names::is_modulation(name) && value.dim() == 2 && value.size()[1] % 64 == 0
}

/// Writes the shipped transformer with its blocks rounded to NF4.
fn nf4_transformer(to: &Path) {
    let from = shipped::model().join("transformer");
    let weights = Weights::open(&from).unwrap();
    let rounded = |name: String| {
        let value = weights.raw(&name).unwrap();
        let value = if is_quantised(&name, &value) {
            nf4(&value)
        } else {
            value
        };
        (name, value)
    };
    let tensors: Vec<_> = weights.names().into_iter().map(rounded).collect();
    save(to.join("diffusion_pytorch_model.safetensors"), &tensors, None).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
}

fn edits(builder: &PipelineBuilder, seeds: u64) -> Vec<RgbImage> {
    let pipe = builder.load(shipped::model()).unwrap();
    let source = kontext::open_image(shipped::data("emoji-source.png")).unwrap();
    let mut images = Vec::new();
    for prompt in PROMPTS {
        for seed in 1..=seeds {
            images.push(pipe.run(&Request::edit(&source, prompt).seed(seed)).unwrap().image);
        }
    }
    images
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn shipped_table(args: &Args) {
    let builder = || Pipeline::builder().device(Device::Cpu).compute(Kind::Float);
    let folder = tempfile::tempdir().unwrap();
    nf4_transformer(folder.path());
    let exact = edits(&builder(), args.seeds);
    let network = args
        .perceptual
        .as_deref()
        .map(|path| Perceptual::open(path, None, Device::Cpu).unwrap());
    let name = network.as_ref().map_or("no network", Perceptual::name);
    println!(
        "\n| weights of the blocks | PSNR mean | least | {name} mean | largest |\n| --- | ---: | ---: | ---: | ---: |"
    );
    for (name, form) in FORMS {
        let builder = match form {
            Form::Bf16 => builder().compute(Kind::BFloat16),
            Form::Packed(to) => builder().quantize(to).fp8_products(Fp8Products::Never),
            Form::Fp8Products => builder().quantize(Quantize::Fp8).fp8_products(Fp8Products::Always),
            Form::Nf4 => builder().transformer(folder.path()),
        };
        let images = edits(&builder, args.seeds);
        let pairs: Vec<_> = exact.iter().zip(&images).collect();
        let decibels: Vec<f64> = pairs.iter().map(|(a, b)| psnr(a, b).unwrap().min(100.0)).collect();
        let distances = network
            .as_ref()
            .map_or(vec![f64::NAN], |network| network.distance(&pairs).unwrap());
        let least = decibels.iter().copied().fold(f64::INFINITY, f64::min);
        let most = distances.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        println!(
            "| {name} | {:.2} | {least:.2} | {:.5} | {most:.5} |",
            mean(&decibels),
            mean(&distances)
        );
    }
    println!("{} edits, distances to f32", exact.len());
}

/// Predicts the velocity of blocks of full width with weights in one form, or in f32.
fn velocity(tensors: &[(String, Tensor)], config: &DitConfig, form: Option<Form>) -> Tensor {
    let draw = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
    let rounded = |(name, value): &(String, Tensor)| {
        let value = if form == Some(Form::Nf4) && is_quantised(name, value) {
            nf4(value)
        } else {
            value.shallow_clone()
        };
        (name.clone(), value)
    };
    let weights = Weights::from_tensors(tensors.iter().map(rounded));
    // The modulation, which a load on a CPU leaves in its file, is quantised here in formats other than fp8.
    let weights = match form {
        Some(Form::Packed(to)) => weights.quantized(Some(to)),
        Some(Form::Fp8Products) => weights.quantized(Some(Quantize::Fp8)).fp8_products(true),
        _ => weights,
    };
    let kind = if form == Some(Form::Bf16) {
        Kind::BFloat16
    } else {
        Kind::Float
    };
    let dit = Dit::new(&weights, config, |_| ()).unwrap();
    let conditioning = Conditioning {
        prompt_embeds: draw(&[1, TEXT, config.context_dim], 1).to_kind(kind),
        pooled: draw(&[1, config.pooled_dim], 2),
    };
    let features = [1, GRID.tokens(), config.in_channels];
    let ids = |t: i64| grid_ids(GRID, Origin { t, y: 0, x: 0 }).unwrap();
    let context = Tokens::new(draw(&features, 3), ids(1)).unwrap();
    let input = RunInput {
        conditioning: &conditioning,
        target_ids: &ids(0),
        context: Some(&context),
        times: &[500.0],
        guidance: Some(2500.0),
    };
    let run = dit.prepare(&input).unwrap();
    dit.forward(&run, 0, &draw(&features, 4).to_kind(kind)).unwrap()
}

fn full_width_table() {
    let config = DitConfig {
        double_blocks: 1,
        single_blocks: 2,
        ..DitConfig::kontext_dev()
    };
    let blank = Weights::blank();
    Dit::new(&blank, &config, |_| ()).unwrap();
    let draw = |(seed, (name, shape)): (usize, (String, Vec<i64>))| {
        let fan_in = shape.iter().skip(1).product::<i64>() as f64;
        let drawn = noise::randn(&shape, 100 + seed as u64, Kind::Float, Device::Cpu).unwrap();
        (name, drawn * fan_in.powf(-0.5))
    };
    let tensors: Vec<_> = blank.shapes().into_iter().enumerate().map(draw).collect();
    let exact = velocity(&tensors, &config, None);
    println!("\n| weights of the blocks | relative L2 of the velocity | PSNR of it |\n| --- | ---: | ---: |");
    for (name, form) in FORMS {
        let error = check::relative_l2(&velocity(&tensors, &config, Some(form)), &exact).unwrap();
        let range = exact.max().double_value(&[]) - exact.min().double_value(&[]);
        let rms = exact.square().mean(Kind::Double).double_value(&[]).sqrt();
        println!(
            "| {name} | {error:.2e} | {:.1} |",
            20.0 * (range / (error * rms)).log10()
        );
    }
}

fn main() {
    let args = Args::parse();
    shipped_table(&args);
    if !args.small {
        full_width_table();
    }
}
