//! A step by kernels of a model that multiplies in fp8, run by the emulator on CPU tensors: norms and GELU are written
//! in fp8 once, instead of by each layer.
//!
//! Distances are relative L2 to the same weights and inputs in f32, whose activations are not rounded. Both ways round
//! the same activations to fp8, by up to 2^-4 of each value, but not from the same bits: without kernels norm and GELU are
//! rounded to bf16 first, and attention and MLP of a single block have a factor each. A value near the middle of two
//! codes then takes the other one, and after some blocks the roundings of both are independent. So the errors of both
//! have one size, and their distance is at most sqrt(2) of it; of a few hundred values both differ by a tenth by chance.
#![cfg(target_os = "linux")] // The emulator's.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::sync::Arc;

use kontext_core::{Device, Kind, Result, Tensor, check};
use kontext_dit::{Dit, DitConfig};
use kontext_emulator::Emulator;
use kontext_formats::{Quantize, save};
use kontext_kernels::{Call, Counter, Kernel, KernelShape, Kernels, Launch};
use kontext_nn::{Adapters, LinearAdapter, Weights, without_fp8};

use common::{Case, config, draw, velocity};

const CASES: [Case; 3] = [(1, 8, true), (1, 6, false), (6, 6, true)];
/// Kernels whose launches are compared.
const KERNELS: [Kernel; 4] = [
    Kernel::QkNormRope,
    Kernel::ResidualNorm,
    Kernel::ResidualNormFp8,
    Kernel::GeluConcatFp8,
];

/// A model's random weights in bf16.
fn tensors(config: &DitConfig) -> Vec<(String, Tensor)> {
    let (blank, drawn) = (Weights::blank(), Weights::synthetic(3).kind(Kind::BFloat16));
    Dit::new(&blank, config, |_| ()).unwrap();
    let draw = |(name, shape): (String, Vec<i64>)| {
        let tensor = drawn.tensor(&name, &shape).unwrap();
        (name, tensor)
    };
    blank.shapes().into_iter().map(draw).collect()
}

/// The model with its blocks quantised to fp8 as they are read.
fn model(config: &DitConfig) -> Dit {
    let weights = Weights::from_tensors(tensors(config)).quantized(Some(Quantize::Fp8));
    Dit::new(&weights.fp8_products(true), config, |_| ()).unwrap()
}

/// Kernels on a target, and the count of its launches.
fn counted(config: &DitConfig, target: Arc<dyn Launch>) -> (Kernels, Arc<Counter>) {
    let counter = Arc::new(Counter::new(target));
    let shape = KernelShape::new(config.width(), config.head_dim, config.mlp_width).unwrap();
    (Kernels::launched_by(counter.clone(), &shape), counter)
}

/// Launches of [`KERNELS`] since the last call.
fn launches(counter: &Counter) -> [u64; 4] {
    let counts = counter.take();
    assert!(counts.keys().all(|kernel| KERNELS.contains(kernel)));
    KERNELS.map(|kernel| counts.get(&kernel).map_or(0, |count| count.launches))
}

/// Those of a model without adapters.
fn all_in_fp8(config: &DitConfig) -> [u64; 4] {
    let (double, single) = (config.double_blocks as u64, config.single_blocks as u64);
    // The norm before the last layer, which multiplies in bf16, and one before each branch; a double block's attention, and
    // a GELU of each stream.
    [double + single, 1, 2 * double + single, 3 * double + single]
}

/// Checks a step by kernels against one without and against f32, and returns its launches and both distances to f32.
#[track_caller]
fn compare(dit: &mut Dit, config: &DitConfig, case: Case) -> ([u64; 4], [f64; 2]) {
    let exact = without_fp8(|| velocity(dit, case, Kind::Float));
    let plain = velocity(dit, case, Kind::BFloat16);
    let (kernels, counter) = counted(config, Arc::new(Emulator::default()));
    dit.set_kernels(Some(kernels));
    let fused = velocity(dit, case, Kind::BFloat16);
    dit.set_kernels(None);
    let [to_fused, to_plain] = [&fused, &plain].map(|v| check::relative_l2(v, &exact).unwrap());
    let apart = check::relative_l2(&fused, &plain).unwrap();
    assert!(
        to_plain < 0.05 && to_fused < 1.25 * to_plain && apart < 1.4 * to_plain,
        "{case:?}: {to_fused:e} by kernels, {to_plain:e} without, {apart:e} apart"
    );
    (launches(&counter), [to_fused, to_plain])
}

#[test]
fn a_step_in_fp8_by_kernels_is_as_close_as_one_without() {
    let mut sums = [0.0; 2];
    for (double, single) in [(2, 2), (1, 0), (0, 1)] {
        let config = config(double, single);
        let mut dit = model(&config);
        for case in CASES {
            let (launches, distances) = compare(&mut dit, &config, case);
            assert_eq!(launches, all_in_fp8(&config), "{case:?}");
            sums = [sums[0] + distances[0], sums[1] + distances[1]];
        }
    }
    assert!(sums[0] < 1.03 * sums[1], "{sums:?}");
}

#[test]
fn layers_with_a_lora_round_their_own_input() {
    let config = config(2, 2);
    let mut dit = model(&config);
    let case = CASES[0];
    let all = all_in_fp8(&config);
    let own_norm = [all[0], all[1] + 1, all[2] - 1, all[3]];
    let own_rows = [all[0], all[1], all[2], all[3] - 1];
    for (layer, [rows, input], expected) in [
        ("double_blocks.0.txt_attn.qkv", [192, 64], own_norm),
        ("double_blocks.0.img_attn.proj", [64, 64], own_rows),
        ("double_blocks.1.img_mlp.0", [256, 64], own_norm),
        ("double_blocks.1.img_mlp.2", [64, 256], own_rows),
        ("single_blocks.0.linear1", [448, 64], own_norm),
        ("single_blocks.1.linear1", [448, 64], own_norm),
        ("single_blocks.1.linear2", [64, 320], own_rows),
    ] {
        let before = without_fp8(|| velocity(&dit, case, Kind::Float));
        let (down, up) = (draw(&[2, input], 11) * 0.3, draw(&[rows, 2], 12) * 0.5);
        let mut adapters = Adapters::new();
        adapters.add(layer, LinearAdapter::low_rank(down, up, 1.0, 0).unwrap());
        // Of this thread only, as a run has them.
        dit.slots().prepare(&adapters).unwrap().scope(|| {
            let after = without_fp8(|| velocity(&dit, case, Kind::Float));
            let change = check::relative_l2(&after, &before).unwrap();
            assert!(change > 0.1, "{layer} changes too little: {change}");
            assert_eq!(compare(&mut dit, &config, case).0, expected, "{layer}");
        });
    }
    assert_eq!(compare(&mut dit, &config, case).0, all);
}

#[test]
fn layers_of_other_forms_keep_their_norms_in_bf16() {
    let config = config(2, 2);
    let fp8 = [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.img_mlp.2",
        "double_blocks.1.txt_mlp.0",
        "double_blocks.1.img_mlp.0",
        "single_blocks.0.linear1",
        "single_blocks.1.linear2",
    ];
    let mixed = tensors(&config).into_iter().map(|(name, tensor)| {
        let layer = name.trim_end_matches(".weight");
        let tensor = if fp8.contains(&layer) {
            tensor.to_kind(Kind::Float8e4m3fn)
        } else {
            tensor
        };
        (name, tensor)
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mixed.safetensors");
    save(&path, &mixed.collect::<Vec<_>>(), None).unwrap();
    let mut dit = Dit::new(&Weights::open(&path).unwrap().fp8_products(true), &config, |_| ()).unwrap();
    for case in CASES {
        // In fp8: the norms before the second MLP and the first single block, a stream's GELU and the last block's.
        assert_eq!(compare(&mut dit, &config, case).0, [4, 5, 2, 2], "{case:?}");
    }
}

/// A device whose kernels have no fp8.
#[derive(Debug, Default)]
struct Older(Emulator);

impl Launch for Older {
    fn device(&self) -> Device {
        self.0.device()
    }

    fn has_fp8(&self) -> bool {
        false
    }

    fn launch(&self, call: Call<'_>) -> Result<()> {
        self.0.launch(call)
    }
}

#[test]
fn older_devices_and_unpacked_weights_keep_their_norms_in_bf16() {
    let config = config(1, 1);
    let mut dit = model(&config);
    let case = CASES[0];
    let wide = [2, 4, 0, 0];
    let (kernels, counter) = counted(&config, Arc::new(Older::default()));
    dit.set_kernels(Some(kernels));
    let exact = without_fp8(|| velocity(&dit, case, Kind::Float));
    let error = |v: &Tensor| check::relative_l2(v, &exact).unwrap();
    let older = error(&velocity(&dit, case, Kind::BFloat16));
    assert_eq!(launches(&counter), wide);
    let (kernels, counter) = counted(&config, Arc::new(Emulator::default()));
    dit.set_kernels(Some(kernels));
    let unpacked = error(&without_fp8(|| velocity(&dit, case, Kind::BFloat16)));
    assert_eq!(launches(&counter), wide);
    assert!(older < 0.05 && unpacked < 0.02, "{older}, {unpacked}");
}
