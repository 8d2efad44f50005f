//! Times of one block of each kind at full width, f32 or bf16 on the CPU: no assertion, run by hand.
//!
//! ```text
//! KIND=f32 OMP_NUM_THREADS=2 cargo test --release -p kontext-dit --test speed -- --ignored --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A measurement that cannot run stops.

use std::time::{Duration, Instant};

use kontext_core::{Conditioning, Device, Kind, Tensor};
use kontext_dit::{Dit, DitConfig, RunInput};
use kontext_nn::Weights;

const TEXT: i64 = 256;
const TARGET: i64 = 768;
const REPEATS: usize = 5;

fn draw(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (kind, Device::Cpu))
}

#[test]
#[ignore = "a measurement"]
fn blocks_of_full_width() {
    let kind = match std::env::var("KIND").as_deref() {
        Ok("bf16") => Kind::BFloat16,
        _ => Kind::Float,
    };
    let config = DitConfig {
        double_blocks: 1,
        single_blocks: 2,
        ..DitConfig::kontext_dev()
    };
    let blank = Weights::blank();
    Dit::new(&blank, &config, |_| ()).unwrap();
    let tensors = blank.shapes().into_iter().map(|(name, shape)| {
        let fan_in = shape.iter().skip(1).product::<i64>() as f64;
        (name, draw(&shape, kind) * fan_in.powf(-0.5))
    });
    let dit = Dit::new(&Weights::from_tensors(tensors.collect::<Vec<_>>()), &config, |_| ()).unwrap();
    let grid = Tensor::stack(
        &[
            Tensor::zeros([TARGET], (Kind::Float, Device::Cpu)),
            Tensor::arange(TARGET, (Kind::Float, Device::Cpu)) / 32.0,
            Tensor::arange(TARGET, (Kind::Float, Device::Cpu)).remainder(32.0),
        ],
        1,
    );
    let input = RunInput {
        conditioning: &Conditioning {
            prompt_embeds: draw(&[1, TEXT, config.context_dim], kind),
            pooled: draw(&[1, config.pooled_dim], kind),
        },
        target_ids: &grid.floor(),
        context: None,
        times: &[500.0],
        guidance: Some(2500.0),
    };
    let run = dit.prepare(&input).unwrap();
    let pieces = dit.pieces(&run, 0).unwrap();
    let first = dit.enter(&run, &draw(&[1, TARGET, config.in_channels], kind)).unwrap();
    let second = pieces[0].forward(&first, &pieces[0].modulation()).unwrap();
    let mut best = [Duration::MAX; 2];
    for _ in 0..REPEATS {
        for (index, state) in [&first, &second].into_iter().enumerate() {
            let modulation = pieces[index].modulation();
            let start = Instant::now();
            pieces[index].forward(state, &modulation).unwrap();
            best[index] = best[index].min(start.elapsed());
        }
    }
    println!("{kind:?}: double {:?}, single {:?}", best[0], best[1]);
}
