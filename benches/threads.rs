//! Edits at once in this process, timed: `threads.py`, next to this file, runs it in several situations.
//!
//! ```text
//! cargo bench --bench threads -- --model MODEL --threads N --runs RUNS
//! ```
//! The program loads the model, edits once, prints `ready` with the numbers of threads, waits for a line on its standard input, runs the
//! edits, and prints their time in seconds.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A benchmark that cannot run stops, and its results are printed.

use std::io::stdin;
use std::thread;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use kontext::crates::kontext_dit::DitConfig;
use kontext::image::RgbImage;
use kontext::{Device, ModelSizes, Pipeline, PipelineBuilder, Request, Threads};
use kontext_cli::shipped;

/// A model, with the edit that is timed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Model {
    /// The shipped model, and ten of its default edits one after the other.
    Emoji,
    /// Random weights of width 1024, 1 double and 2 single blocks, 2 steps at 256x256.
    Middle,
    /// Random weights of width 3072, 1 double and 1 single block, 1 step at 256x256.
    Large,
}

/// Time edits at once.
#[derive(Debug, Parser)]
struct Args {
    /// The model to edit with
    #[arg(long)]
    model: Model,
    /// Threads of each edit: auto, or a number
    #[arg(long, default_value_t)]
    threads: Threads,
    /// Edits at once, each on a thread of its own
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// An argument that cargo gives
    #[arg(long, hide = true)]
    bench: bool,
}

impl Model {
    fn load(self, builder: &PipelineBuilder) -> Pipeline {
        let (heads, single_blocks) = match self {
            Self::Emoji => return builder.load(shipped::model()).unwrap(),
            Self::Middle => (8, 2),
            Self::Large => (24, 1),
        };
        let mut sizes = ModelSizes::small();
        sizes.dit = DitConfig {
            heads,
            mlp_width: 4 * 128 * heads,
            single_blocks,
            ..sizes.dit
        };
        builder.random(&sizes, 7).unwrap()
    }

    fn request(self) -> Request {
        match self {
            Self::Emoji => {
                let image = kontext::open_image(shipped::data("emoji-source.png")).unwrap();
                Request::edit(image, "turn him into a cook").seed(1)
            }
            Self::Middle | Self::Large => {
                let steps = if matches!(self, Self::Large) { 1 } else { 2 };
                let image = RgbImage::new(256, 256);
                Request::edit(image, "a cook").size(256, 256).steps(steps).seed(1)
            }
        }
    }

    /// Returns the number of edits that each thread makes.
    fn edits(self) -> usize {
        if matches!(self, Self::Emoji) { 10 } else { 1 }
    }
}

fn main() {
    let args = Args::parse();
    let builder = Pipeline::builder().device(Device::Cpu).threads(args.threads);
    let pipe = args.model.load(&builder);
    let request = args.model.request();
    let expected = pipe.run(&request).unwrap();
    println!("ready {}", expected.plan.threads.unwrap());
    stdin().read_line(&mut String::new()).unwrap();
    let begin = Instant::now();
    let edit = || {
        for _ in 0..args.model.edits() {
            // The same bytes, whatever runs at the same time.
            assert_eq!(pipe.run(&request).unwrap().image, expected.image);
        }
    };
    thread::scope(|scope| (0..args.runs).for_each(|_| drop(scope.spawn(edit))));
    println!("{}", begin.elapsed().as_secs_f64());
}
