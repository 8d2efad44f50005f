//! T5 at full width on the CPU, relative to libtorch's matrix products in the same run.
//!
//! Blocks of T5 v1.1 XXL with random weights and 512 tokens, plain and packed, in both kinds of arithmetic: the difference
//! between a model of four and one of one, so that what is computed once a prompt is left out. The last column is the rate
//! of a block's operations, relative to that of one of its products by itself, in the same kind.
//!
//! ```text
//! cargo bench --bench text
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A benchmark that cannot run stops.

use std::time::Instant;

use kontext::{Device, Kind, Quantize, Tensor, Weights};
use kontext_text::{T5Config, T5Encoder};

const TOKENS: i64 = 512;
const BLOCKS: [i64; 2] = [1, 4];
/// Turns, of which the fastest counts; the first makes what is kept.
const TURNS: usize = 6;

fn main() {
    let _no_grad = tch::no_grad_guard();
    let [few, config] = BLOCKS.map(|num_layers| T5Config {
        vocab_size: 16,
        num_layers,
        ..T5Config::xxl()
    });
    let forms: [(&str, Option<Kind>, Option<Quantize>); 5] = [
        ("f32", Some(Kind::Float), None),
        ("bf16", Some(Kind::BFloat16), None),
        ("q8_0", None, Some(Quantize::Q8_0)),
        ("q4_0", None, Some(Quantize::Q4_0)),
        ("fp8", None, Some(Quantize::Fp8)),
    ];
    let kinds = [Kind::Float, Kind::BFloat16];
    let products = kinds.map(|kind| product(&config, kind));
    let ids = Tensor::randint(config.vocab_size, [1, TOKENS], (Kind::Int64, Device::Cpu));
    for (name, plain, packed) in forms {
        let weights = random(&config);
        let weights = match plain {
            Some(kind) => weights.kind(kind),
            None => weights.quantized(packed),
        };
        let t5 = [&few, &config].map(|config| T5Encoder::new(&weights, config, Kind::Float).unwrap());
        for (kind, product) in kinds.into_iter().zip(products) {
            let [once, all] = t5
                .each_ref()
                .map(|t5| least(|| drop(t5.forward_in(&ids, kind).unwrap())));
            let seconds = (all - once) / (BLOCKS[1] - BLOCKS[0]) as f64;
            let rate = operations(&config) / seconds;
            println!(
                "{name} weights in {kind:?}: {seconds:.4} s a block, {:.0} GFLOP/s, {:.2} of the product's {:.0}",
                rate / 1e9,
                rate / product,
                product / 1e9
            );
        }
    }
}

/// Draws weights of variance 1 / fan-in.
fn random(config: &T5Config) -> Weights {
    let blank = Weights::blank();
    T5Encoder::new(&blank, config, Kind::Float).unwrap();
    let tensors = blank.shapes().into_iter().map(|(name, shape)| {
        let fan_in = shape.iter().skip(1).product::<i64>() as f64;
        (
            name,
            Tensor::randn(&shape, (Kind::Float, Device::Cpu)) * fan_in.powf(-0.5),
        )
    });
    Weights::from_tensors(tensors.collect::<Vec<_>>())
}

/// Returns the operations per second of the first product of the feed-forward layer.
fn product(config: &T5Config, kind: Kind) -> f64 {
    let draw = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
    let (x, weight) = (draw([TOKENS, config.d_model]), draw([config.d_ff, config.d_model]));
    let seconds = least(|| drop(x.linear(&weight, None::<&Tensor>)));
    (2 * TOKENS * config.d_model * config.d_ff) as f64 / seconds
}

/// Returns a block's operations: four projections, attention, and the three products of the feed-forward layer.
fn operations(config: &T5Config) -> f64 {
    let inner = config.num_heads * config.d_kv;
    let per_token = 8 * config.d_model * inner + 4 * TOKENS * inner + 6 * config.d_model * config.d_ff;
    (TOKENS * per_token) as f64
}

fn least(work: impl Fn()) -> f64 {
    let time = |_| {
        let begin = Instant::now();
        work();
        begin.elapsed().as_secs_f64()
    };
    (0..TURNS).map(time).fold(f64::INFINITY, f64::min)
}
