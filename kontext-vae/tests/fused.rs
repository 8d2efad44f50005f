//! An autoencoder by kernels, run by the emulator on CPU tensors, against libtorch's operations in bf16 and in f32.
//!
//! Distances are relative L2 to the same weights and inputs in f32.
#![cfg(target_os = "linux")] // The emulator's.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::sync::Arc;

use kontext_core::{Device, Kind, Tensor, check, noise};
use kontext_emulator::Emulator;
use kontext_kernels::{Counter, Kernel, KernelShape, Kernels};
use kontext_nn::{GroupNorm, Weights};
use kontext_vae::{Autoencoder, AutoencoderKl, AutoencoderTiny, Tiling, TinyConfig, VaeConfig};

/// Norms of the encoder: of four levels of two residual blocks, of the middle block, and the last.
const ENCODER: u64 = 4 * 2 * 2 + 5 + 1;
/// Those of the decoder, which has three blocks a level.
const DECODER: u64 = 4 * 3 * 2 + 5 + 1;

fn autoencoder(block_out_channels: [i64; 4], norm_num_groups: i64, seed: u64) -> Autoencoder {
    let config = VaeConfig {
        block_out_channels,
        norm_num_groups,
        ..VaeConfig::flux()
    };
    Autoencoder::Kl(AutoencoderKl::new(&Weights::synthetic(seed), &config).unwrap())
}

/// An autoencoder with the channels of the repository's small model.
fn small(seed: u64) -> Autoencoder {
    autoencoder([16, 24, 48, 96], 8, seed)
}

fn draw(shape: &[i64], seed: u64) -> Tensor {
    // Rounded, so that both dtypes start from the same values.
    let x = noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
    x.clamp(-1.0, 1.0).to_kind(Kind::BFloat16).to_kind(Kind::Float)
}

fn image() -> Tensor {
    draw(&[2, 3, 40, 24], 2)
}

/// Returns the latents of an image, and an image of latents, in a dtype.
fn coded(vae: &Autoencoder, kind: Kind) -> [Tensor; 2] {
    let latents = draw(&[2, 16, 5, 3], 3).to_kind(kind);
    [
        vae.encode_latents(&image().to_kind(kind)).unwrap(),
        vae.decode(&latents).unwrap(),
    ]
}

fn kernels() -> (Kernels, Arc<Counter>) {
    let counter = Arc::new(Counter::new(Arc::new(Emulator::default())));
    // Of any transformer: channels are arguments of a launch.
    let shape = KernelShape::new(64, 32, 256).unwrap();
    (Kernels::launched_by(counter.clone(), &shape), counter)
}

/// Returns the number of norms since the last call, each of two launches.
fn norms(counter: &Counter) -> u64 {
    let counts = counter.take();
    let launches = |kernel| counts.get(&kernel).map_or(0, |count| count.launches);
    let [sums, norms] = [Kernel::GroupSums, Kernel::GroupNorm].map(launches);
    assert!(sums == norms && counts.len() <= 2, "{counts:?}");
    norms
}

#[test]
fn an_autoencoder_by_kernels_is_as_close_to_f32_as_one_without() {
    let mut sums = [0.0; 2];
    for seed in 1..=4 {
        let mut vae = small(seed);
        let (exact, plain) = (coded(&vae, Kind::Float), coded(&vae, Kind::BFloat16));
        let (kernels, counter) = kernels();
        vae.set_kernels(Some(kernels));
        let fused = coded(&vae, Kind::BFloat16);
        assert_eq!(norms(&counter), ENCODER + DECODER);
        for ((fused, plain), exact) in fused.iter().zip(&plain).zip(&exact) {
            let distance = |x: &Tensor| check::relative_l2(&x.to_kind(Kind::Float), exact).unwrap();
            let (fused, plain) = (distance(fused), distance(plain));
            // Of a few hundred latents, rounding errors differ by chance: of 24 draws by up to 15%.
            assert!(fused < 1.25 * plain && plain < 2e-2, "{fused:e}, {plain:e}");
            sums = [sums[0] + fused, sums[1] + plain];
        }
        // In f32 nothing changes.
        for (x, exact) in coded(&vae, Kind::Float).iter().zip(&exact) {
            assert!(x.equal(exact));
        }
        assert_eq!(norms(&counter), 0);
    }
    // Both round each norm once: on a CPU libtorch's operations compute it in f32, too.
    assert!(sums[0] < 1.05 * sums[1], "{sums:?}");
}

#[test]
fn kernels_that_are_removed_leave_the_autoencoder_as_it_was() {
    let mut vae = small(1);
    let plain = coded(&vae, Kind::BFloat16);
    let (kernels, counter) = kernels();
    vae.set_kernels(Some(kernels));
    vae.set_kernels(None);
    let coded = coded(&vae, Kind::BFloat16);
    assert!(coded.iter().zip(&plain).all(|(x, plain)| x.equal(plain)));
    assert_eq!(norms(&counter), 0);
}

#[test]
fn roundings_of_other_programs_take_the_path_without_kernels() {
    let mut vae = small(1);
    let plain = GroupNorm::by_libtorch_in(|| coded(&vae, Kind::BFloat16));
    let (kernels, counter) = kernels();
    vae.set_kernels(Some(kernels));
    let coded = GroupNorm::by_libtorch_in(|| coded(&vae, Kind::BFloat16));
    assert!(coded.iter().zip(&plain).all(|(x, plain)| x.equal(plain)));
    assert_eq!(norms(&counter), 0);
}

#[test]
fn gradients_are_those_of_the_path_without_kernels() {
    let mut vae = small(1);
    let gradient = |vae: &Autoencoder| {
        let image = image().set_requires_grad(true);
        let latents = vae.encode_latents(&image.to_kind(Kind::BFloat16)).unwrap();
        latents.to_kind(Kind::Float).square().sum(Kind::Float).backward();
        image.grad()
    };
    let plain = gradient(&vae);
    assert!(plain.abs().max().double_value(&[]) > 0.0);
    let (kernels, counter) = kernels();
    vae.set_kernels(Some(kernels));
    assert!(gradient(&vae).equal(&plain));
    assert_eq!(norms(&counter), 0);
}

#[test]
fn each_tile_is_normed_by_kernels() {
    let mut vae = small(1);
    let (kernels, counter) = kernels();
    vae.set_kernels(Some(kernels));
    let latents = draw(&[1, 16, 8, 14], 3).to_kind(Kind::BFloat16);
    let tiling = Tiling { tile: 64, overlap: 16 };
    assert_eq!(vae.decode_tiled(&latents, tiling).unwrap().size(), [1, 3, 64, 112]);
    assert_eq!(norms(&counter), 2 * DECODER);
}

#[test]
fn autoencoders_without_a_kernel_for_their_channels_compute_as_before() {
    let tiny = || Autoencoder::Tiny(AutoencoderTiny::new(&Weights::synthetic(1), &TinyConfig::taef1()).unwrap());
    let narrow = || autoencoder([4, 4, 4, 4], 2, 1);
    let builds: [&dyn Fn() -> Autoencoder; 2] = [&tiny, &narrow];
    for build in builds {
        let mut vae = build();
        let plain = coded(&vae, Kind::BFloat16);
        let (kernels, counter) = kernels();
        vae.set_kernels(Some(kernels));
        let coded = coded(&vae, Kind::BFloat16);
        assert!(coded.iter().zip(&plain).all(|(x, plain)| x.equal(plain)));
        assert_eq!(norms(&counter), 0);
    }
}
