//! One block of the transformer at full width and 1536 tokens, with weights in f32, bf16 and packed, on the CPU.
//!
//! 512 text tokens, 512 target tokens and 512 reference tokens; modulation is prepared before. What a packed weight
//! costs is that it is unpacked for every multiplication; what it saves is memory (printed once for each).
//!
//! ```text
//! cargo bench --bench packed
//! ```
//! `compare_packed.py` beside this file sets the times against those of diffusers in f32.
#![allow(missing_docs)] // Of what criterion's macros make.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // A benchmark that cannot run stops.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use kontext_core::formats::Quantize;
use kontext_core::{Conditioning, Device, Kind, Result, Tensor, Tokens};
use kontext_dit::{Dit, DitConfig, RunInput};
use kontext_nn::Weights;
use kontext_sampler::Grid;
use kontext_sampler::ids::{Origin, grid_ids};

const TEXT: i64 = 512;
/// Target and reference are alike.
const GRID: Grid = Grid { rows: 16, cols: 32 };
/// Name, blocks of both kinds, and which kind of weights. The first block is timed: with two single blocks it is not
/// the last one, which computes less.
const KINDS: [(&str, i64, i64); 2] = [("double", 1, 0), ("single", 0, 2)];

#[derive(Clone, Copy)]
enum Form {
    Plain(Kind),
    Packed(Quantize),
}

const FORMS: [(&str, Form); 5] = [
    ("f32", Form::Plain(Kind::Float)),
    ("bf16", Form::Plain(Kind::BFloat16)),
    ("q8_0", Form::Packed(Quantize::Q8_0)),
    ("q4_0", Form::Packed(Quantize::Q4_0)),
    ("fp8", Form::Packed(Quantize::Fp8)),
];

fn random(shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_randn(shape, (Kind::Float, Device::Cpu))?)
}

/// Weights of variance 1 / fan-in in one of the forms.
fn model(config: &DitConfig, form: Form) -> Result<Dit> {
    let blank = Weights::blank();
    Dit::new(&blank, config, |_| ())?;
    let draw = |(name, shape): (String, Vec<i64>)| {
        let fan_in = shape.iter().skip(1).product::<i64>() as f64;
        Ok((name, random(&shape)?.f_mul_scalar_(fan_in.powf(-0.5))?))
    };
    let weights = Weights::from_tensors(blank.shapes().into_iter().map(draw).collect::<Result<Vec<_>>>()?);
    let weights = match form {
        Form::Plain(kind) => weights.kind(kind),
        Form::Packed(to) => weights.quantized(Some(to)),
    };
    Dit::new(&weights, config, |_| ())
}

fn blocks(criterion: &mut Criterion) {
    for (kind, double_blocks, single_blocks) in KINDS {
        let config = DitConfig {
            double_blocks,
            single_blocks,
            ..DitConfig::kontext_dev()
        };
        let mut group = criterion.benchmark_group(kind);
        group
            .sample_size(10)
            .sampling_mode(SamplingMode::Flat)
            .measurement_time(Duration::from_secs(15));
        for (name, form) in FORMS {
            let dit = model(&config, form).unwrap();
            let features = [1, GRID.tokens(), config.in_channels];
            let conditioning = Conditioning {
                prompt_embeds: random(&[1, TEXT, config.context_dim]).unwrap(),
                pooled: random(&[1, config.pooled_dim]).unwrap(),
            };
            let ids = |t: i64| grid_ids(GRID, Origin { t, y: 0, x: 0 }).unwrap();
            let context = Tokens::new(random(&features).unwrap(), ids(1)).unwrap();
            let input = RunInput {
                conditioning: &conditioning,
                target_ids: &ids(0),
                context: Some(&context),
                times: &[500.0],
                guidance: Some(2500.0),
            };
            let run = dit.prepare(&input).unwrap();
            let state = dit.enter(&run, &random(&features).unwrap()).unwrap();
            let pieces = dit.pieces(&run, 0).unwrap();
            let modulation = pieces[0].modulation();
            group.bench_function(name, |b| b.iter(|| pieces[0].forward(&state, &modulation).unwrap()));
        }
        group.finish();
    }
}

criterion_group!(benches, blocks);
criterion_main!(benches);
