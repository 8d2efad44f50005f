//! The tensors of which a group norm's kernels compute the norm, in the emulator, and those that libtorch's operations take.
#![cfg(target_os = "linux")] // The emulator's.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::sync::Arc;

use kontext_core::{Device, Kind, Tensor, check, noise};
use kontext_emulator::Emulator;
use kontext_kernels::{Counter, Kernel, KernelShape, Kernels};
use kontext_nn::{GroupNorm, Weights, ops};

const CHANNELS: i64 = 16;

fn kernels() -> (Kernels, Arc<Counter>) {
    let counter = Arc::new(Counter::new(Arc::new(Emulator::default())));
    let shape = KernelShape::new(64, 32, 256).unwrap();
    (Kernels::launched_by(counter.clone(), &shape), counter)
}

fn draw(shape: &[i64], seed: u64) -> Tensor {
    noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
}

/// A norm and, if it is trained, leaves as its weights.
fn norm(channels: i64, groups: i64, trained: bool) -> GroupNorm {
    let weights = Weights::from_tensors([("weight", 1.0), ("bias", 0.0)].map(|(name, mean)| {
        let value = draw(&[channels], 1) * 0.3 + mean;
        (name.to_owned(), value.set_requires_grad(trained))
    }));
    GroupNorm::new(&weights, channels, groups, 1e-6).unwrap()
}

/// A picture in bf16, channels-last.
fn picture(channels: i64) -> Tensor {
    let x = draw(&[2, channels, 5, 7], 2).to_kind(Kind::BFloat16);
    ops::channels_last(&x).unwrap()
}

/// Returns the norms of a picture with SiLU, with it in place, and without.
fn norms(norm: &GroupNorm, picture: &dyn Fn() -> Tensor) -> [Tensor; 3] {
    [
        norm.forward_silu(&picture()).unwrap(),
        norm.forward_silu_in_place(picture()).unwrap(),
        norm.forward(&picture()).unwrap(),
    ]
}

#[test]
fn kernels_norm_a_picture_and_round_once() {
    let (kernels, counter) = kernels();
    let mut norm = norm(CHANNELS, 8, false);
    let exact = norms(&norm, &|| picture(CHANNELS).to_kind(Kind::Float));
    norm.set_kernels(Some(&kernels));
    for (got, exact) in norms(&norm, &|| picture(CHANNELS)).iter().zip(&exact) {
        assert_eq!((got.kind(), got.stride()), (Kind::BFloat16, picture(CHANNELS).stride()));
        let [error, rounding] =
            [got, &exact.to_kind(Kind::BFloat16)].map(|x| check::relative_l2(&x.to_kind(Kind::Float), exact).unwrap());
        // Of a thousand values, some next to the middle of two steps fall on the other side.
        assert!(error < 1.01 * rounding, "{error:e}, by rounding {rounding:e}");
    }
    let counts = counter.take();
    let launches = [Kernel::GroupSums, Kernel::GroupNorm].map(|kernel| counts[&kernel].launches);
    assert_eq!((launches, counts.len()), ([3, 3], 2));
}

/// A picture whose address is no multiple of 16 bytes.
fn shifted() -> Tensor {
    let picture = picture(CHANNELS);
    let memory = Tensor::zeros([picture.numel() as i64 + 1], (Kind::BFloat16, Device::Cpu));
    let rows = memory.narrow(0, 1, picture.numel() as i64).view([2, 5, 7, CHANNELS]);
    let mut shifted = rows.permute([0, 3, 1, 2]);
    shifted.copy_(&picture);
    shifted
}

#[test]
fn other_tensors_take_libtorchs_operations() {
    let (kernels, counter) = kernels();
    // Name, picture, channels, groups, and `true` for weights in training.
    type Case = (&'static str, fn() -> Tensor, i64, i64, bool);
    let cases: [Case; 7] = [
        ("f32", || picture(CHANNELS).to_kind(Kind::Float), CHANNELS, 8, false),
        ("f16", || picture(CHANNELS).to_kind(Kind::Half), CHANNELS, 8, false),
        ("channels first", || picture(CHANNELS).contiguous(), CHANNELS, 8, false),
        ("an odd address", shifted, CHANNELS, 8, false),
        (
            "a gradient",
            || picture(CHANNELS).set_requires_grad(true),
            CHANNELS,
            8,
            false,
        ),
        ("weights in training", || picture(CHANNELS), CHANNELS, 8, true),
        ("channels without kernels", || picture(12), 12, 4, false),
    ];
    for (name, picture, channels, groups, trained) in cases {
        let mut norm = norm(channels, groups, trained);
        let plain = norms(&norm, &picture);
        norm.set_kernels(Some(&kernels));
        for (got, plain) in norms(&norm, &picture).iter().zip(&plain) {
            let same = got.equal(plain) && got.requires_grad() == plain.requires_grad();
            assert!(same, "{name}");
        }
        assert!(counter.take().is_empty(), "{name}");
    }
}

#[test]
fn a_scope_of_libtorchs_norms_is_that_of_its_thread() {
    let (kernels, counter) = kernels();
    let mut norm = norm(CHANNELS, 8, false);
    norm.set_kernels(Some(&kernels));
    let launched = || {
        drop(norm.forward_silu(&picture(CHANNELS)).unwrap());
        !counter.take().is_empty()
    };
    assert!(launched());
    assert!(!GroupNorm::by_libtorch_in(launched));
    let other = GroupNorm::by_libtorch_in(|| {
        let (kernels, counter) = self::kernels();
        std::thread::spawn(move || {
            let mut norm = self::norm(CHANNELS, 8, false);
            norm.set_kernels(Some(&kernels));
            drop(norm.forward_silu(&picture(CHANNELS)).unwrap());
            counter.take().len()
        })
        .join()
        .unwrap()
    });
    assert_eq!(other, 2);
    assert!(launched());
    norm.set_kernels(None);
    assert!(!norm.forward(&picture(CHANNELS)).unwrap().requires_grad() && counter.take().is_empty());
}
