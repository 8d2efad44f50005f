//! A step by kernels, run by the emulator on CPU tensors, against libtorch's operations in bf16 and in f32.
//!
//! Distances are relative L2 to the same weights and inputs in f32.
#![cfg(target_os = "linux")] // The emulator's.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::sync::Arc;

use kontext_core::{Kind, Tensor, check};
use kontext_dit::{Arithmetic, Dit, DitConfig};
use kontext_emulator::Emulator;
use kontext_kernels::{Kernel, KernelShape, Kernels};
use kontext_nn::{Adapters, LinearAdapter, Weights};

use common::{Case, config, draw, prepare, target, velocity};

fn model(config: &DitConfig) -> Dit {
    Dit::new(&Weights::synthetic(3).kind(Kind::BFloat16), config, |_| ()).unwrap()
}

const CASES: [Case; 5] = [(1, 1, true), (1, 1, false), (1, 2, true), (2, 2, true), (2, 2, false)];

fn kernels(config: &DitConfig) -> (Kernels, Arc<Emulator>) {
    let emulator = Arc::new(Emulator::default());
    let shape = KernelShape::new(config.width(), config.head_dim, config.mlp_width).unwrap();
    (Kernels::launched_by(emulator.clone(), &shape), emulator)
}

/// Launches of the kernels of norms of queries and keys, and of residuals, since the last call.
fn launches(emulator: &Emulator) -> [u64; 2] {
    let accounts = emulator.take();
    let launches = |kernel| accounts.get(&kernel).map_or(0, |account| account.launches);
    let known = [Kernel::QkNormRope, Kernel::ResidualNorm];
    assert!(accounts.keys().all(|kernel| known.contains(kernel)));
    known.map(launches)
}

/// Compares a step by kernels with one without; returns their distances to f32.
fn distances(dit: &mut Dit, config: &DitConfig, case: Case) -> [f64; 2] {
    let exact = velocity(dit, case, Kind::Float);
    let plain = velocity(dit, case, Kind::BFloat16);
    let (kernels, emulator) = kernels(config);
    dit.set_kernels(Some(kernels));
    let fused = velocity(dit, case, Kind::BFloat16);
    assert_eq!(fused.size(), exact.size());
    let (double, single) = (config.double_blocks as u64, config.single_blocks as u64);
    // One norm before the first block; a double block has two branches, a single block one.
    let expected = [double + single, 1 + 2 * double + single];
    assert_eq!(launches(&emulator), expected, "{case:?}");
    // In f32 nothing changes.
    assert!(velocity(dit, case, Kind::Float).equal(&exact), "{case:?}");
    assert_eq!(launches(&emulator), [0, 0]);
    dit.set_kernels(None);
    [&fused, &plain].map(|v| check::relative_l2(&v.to_kind(Kind::Float), &exact).unwrap())
}

#[test]
fn a_step_by_kernels_is_as_close_to_f32_as_one_without() {
    for (double, single) in [(2, 2), (1, 0), (0, 1)] {
        let config = config(double, single);
        let mut dit = model(&config);
        let mut sums = [0.0; 2];
        for case in CASES {
            let [fused, plain] = distances(&mut dit, &config, case);
            // Of a few hundred values, rounding errors differ by chance; bf16 rounds by up to 2^-9.
            assert!(fused < 1.2 * plain && plain < 0.02, "{case:?}: {fused:e}, {plain:e}");
            sums = [sums[0] + fused, sums[1] + plain];
        }
        assert!(sums[0] <= sums[1], "{double} + {single} blocks: {sums:?}");
    }
}

fn adapters() -> Adapters {
    let mut adapters = Adapters::new();
    for (layer, rows, input) in [
        ("double_blocks.0.txt_attn.qkv", 192, 64),
        ("double_blocks.1.img_mlp.0", 256, 64),
        ("double_blocks.1.img_mlp.2", 64, 256),
        ("single_blocks.0.linear1", 448, 64),
        ("single_blocks.1.linear2", 64, 320),
    ] {
        let (down, up) = (draw(&[2, input], 11) * 0.1, draw(&[rows, 2], 12) * 0.5);
        adapters.add(layer, LinearAdapter::low_rank(down, up, 1.0, 0).unwrap());
    }
    adapters
}

#[test]
fn a_lora_works_by_kernels_as_closely() {
    let config = config(2, 2);
    let mut dit = model(&config);
    let case = CASES[0];
    let before = velocity(&dit, case, Kind::Float);
    dit.slots().set(&adapters()).unwrap();
    let change = check::relative_l2(&velocity(&dit, case, Kind::Float), &before).unwrap();
    assert!(change > 0.1, "the adapters change too little: {change}");
    let [fused, plain] = distances(&mut dit, &config, case);
    assert!(fused < 1.2 * plain && plain < 0.02, "{fused:e}, {plain:e}");
}

#[test]
fn roundings_of_references_take_the_path_without_kernels() {
    let config = config(2, 2);
    let mut dit = model(&config);
    let case = CASES[0];
    let x = target(case, Kind::BFloat16);
    let by = |dit: &Dit, arithmetic| {
        let run = prepare(dit, case, Kind::BFloat16).arithmetic(arithmetic);
        dit.forward(&run, 1, &x).unwrap()
    };
    let references = [Arithmetic::Diffusers, Arithmetic::Bfl];
    let plain = references.map(|arithmetic| by(&dit, arithmetic));
    assert!(!plain[0].equal(&plain[1]), "the roundings make no difference");
    let (kernels, emulator) = kernels(&config);
    dit.set_kernels(Some(kernels));
    for (arithmetic, plain) in references.into_iter().zip(&plain) {
        assert!(by(&dit, arithmetic).equal(plain), "{arithmetic:?}");
    }
    assert_eq!(launches(&emulator), [0, 0]);
}

#[test]
fn gradients_are_those_of_the_path_without_kernels() {
    let config = config(2, 2);
    let mut dit = model(&config);
    let case = CASES[0];
    let gradients = |dit: &Dit| {
        // Training puts leaves into the slots.
        let factors = [draw(&[2, 64], 11), draw(&[192, 2], 12)].map(|factor| factor.set_requires_grad(true));
        let [down, up] = factors.each_ref().map(Tensor::shallow_clone);
        let mut adapters = Adapters::new();
        let layer = "double_blocks.0.img_attn.qkv";
        adapters.add(layer, LinearAdapter::low_rank(down, up, 1.0, 0).unwrap());
        dit.slots().set(&adapters).unwrap();
        velocity(dit, case, Kind::BFloat16)
            .to_kind(Kind::Float)
            .square()
            .sum(Kind::Float)
            .backward();
        factors.map(|factor| factor.grad())
    };
    let plain = gradients(&dit);
    let (kernels, emulator) = kernels(&config);
    dit.set_kernels(Some(kernels));
    for (got, expected) in gradients(&dit).iter().zip(&plain) {
        assert!(expected.abs().max().double_value(&[]) > 0.0);
        assert!(got.equal(expected));
    }
    assert_eq!(launches(&emulator), [0, 0]);
}
