//! One denoising step of the transformer: full width and few blocks, random weights, f32 on the CPU.
//!
//! A 256x256 edit: 256 target tokens, 256 reference tokens, 512 text tokens. `…/step` is `Dit::forward`;
//! `…/prepare` is `Dit::prepare`, which a run calls once for all of its 28 steps.
//!
//! ```text
//! cargo bench --bench step                            # both depths, 6 GB of memory
//! cargo bench --bench step -- 1-double-2-single       # one of them, 3 GB
//! ```
//! `compare_step.py` beside this file sets the times against those of diffusers.
#![allow(missing_docs)] // Of what criterion's macros make.
#![allow(clippy::unwrap_used)] // A benchmark that cannot run stops.

use std::cell::LazyCell;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use kontext_core::{Conditioning, Device, Kind, Result, Tensor, Tokens};
use kontext_dit::{Dit, DitConfig, Run, RunInput};
use kontext_nn::Weights;
use kontext_sampler::Size;
use kontext_sampler::ids::{Origin, grid_ids};

/// Double-stream and single-stream blocks. FLUX.1 has 19 and 38: the difference of the two depths is
/// what its depth repeats, without the ends of the model and the savings in its last block.
const DEPTHS: [(i64, i64); 2] = [(1, 2), (2, 4)];
/// Width and height of target and reference in pixels.
const SIDE: u32 = 256;
/// T5's tokens in FLUX.1 [dev].
const TEXT: i64 = 512;
/// diffusers' default.
const STEPS: usize = 28;

/// A transformer, and what enters it.
struct Bench {
    dit: Dit,
    conditioning: Conditioning,
    target_ids: Tensor,
    context: Tokens,
    times: Vec<f32>,
    target: Tensor,
}

impl Bench {
    fn new((double_blocks, single_blocks): (i64, i64)) -> Result<Self> {
        let config = DitConfig {
            double_blocks,
            single_blocks,
            ..DitConfig::kontext_dev()
        };
        let grid = Size::new(SIDE, SIDE).grid()?;
        let features = [1, grid.tokens(), config.in_channels];
        Ok(Self {
            dit: Dit::new(&random_weights(&config)?, &config, |_| ())?,
            conditioning: Conditioning {
                prompt_embeds: random(&[1, TEXT, config.context_dim])?,
                pooled: random(&[1, config.pooled_dim])?,
            },
            target_ids: grid_ids(grid, Origin { t: 0, y: 0, x: 0 })?,
            context: Tokens::new(random(&features)?, grid_ids(grid, Origin { t: 1, y: 0, x: 0 })?)?,
            times: (0..STEPS)
                .map(|step| 1000.0 * (1.0 - step as f32 / STEPS as f32))
                .collect(),
            target: random(&features)?,
        })
    }

    fn prepare(&self) -> Result<Run> {
        self.dit.prepare(&RunInput {
            conditioning: &self.conditioning,
            target_ids: &self.target_ids,
            context: Some(&self.context),
            times: &self.times,
            guidance: Some(2500.0),
        })
    }
}

fn random(shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_randn(shape, (Kind::Float, Device::Cpu))?)
}

/// Weights of variance 1 / fan-in. `Weights::synthetic` takes longer than all the timing for as many.
fn random_weights(config: &DitConfig) -> Result<Weights> {
    let blank = Weights::blank();
    Dit::new(&blank, config, |_| ())?;
    let draw = |(name, shape): (String, Vec<i64>)| {
        let fan_in = shape.iter().skip(1).product::<i64>() as f64;
        Ok((name, random(&shape)?.f_mul_scalar_(fan_in.powf(-0.5))?))
    };
    Ok(Weights::from_tensors(
        blank.shapes().into_iter().map(draw).collect::<Result<Vec<_>>>()?,
    ))
}

fn step(criterion: &mut Criterion) {
    for (double, single) in DEPTHS {
        let bench = LazyCell::new(|| Bench::new((double, single)).unwrap());
        let run = LazyCell::new(|| bench.prepare().unwrap());
        let mut group = criterion.benchmark_group(format!("{double}-double-{single}-single"));
        group.sample_size(10).sampling_mode(SamplingMode::Flat);

        group.measurement_time(Duration::from_secs(5));
        group.bench_function("prepare", |b| {
            let bench = &*bench;
            b.iter(|| bench.prepare().unwrap());
        });
        // Short enough for one step a sample where a step takes more than 3 s.
        group.measurement_time(Duration::from_secs(30));
        group.bench_function("step", |b| {
            let (bench, run) = (&*bench, &*run);
            b.iter(|| bench.dit.forward(run, 0, &bench.target).unwrap());
        });
        group.finish();
    }
}

criterion_group!(benches, step);
criterion_main!(benches);
