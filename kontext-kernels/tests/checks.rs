//! Tensors that do not fit are refused before a launch, with the reason.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{FLUX, SMALL, kernels, random, shape, weights};
use kontext_core::{Device, Kind, Result, Tensor};
use kontext_emulator::{Emulator, Order};
use kontext_kernels::{Branch, Counter, Kernel, Kernels, NormModulation, QkWeights};

fn small() -> Kernels {
    kernels(SMALL, Order::Forward)
}

/// Asserts that a result is an error that names all of `words`.
fn refused<T>(result: Result<T>, words: &[&str]) {
    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(
        words.iter().all(|word| error.contains(word)),
        "{error:?} lacks one of {words:?}"
    );
}

fn norm(kernels: &Kernels, x: &Tensor, vector: &Tensor) -> Result<Tensor> {
    let modulation = NormModulation {
        scale: vector,
        shift: vector,
    };
    kernels.residual_norm(x, None, &modulation, &modulation, 0, 1e-6)
}

#[test]
fn shapes_kinds_and_layouts_are_checked() {
    let (kernels, x, vector) = (
        small(),
        random(&[2, 3, 192], 1, 1.0, 0.0),
        random(&[1, 192], 2, 1.0, 0.0),
    );
    drop(norm(&kernels, &x, &vector).unwrap());
    refused(
        norm(&kernels, &x.to_kind(Kind::Float), &vector),
        &["x", "BFloat16", "Float"],
    );
    refused(
        norm(&kernels, &x.narrow(2, 0, 64), &vector),
        &["x", "[B, T, D]", "[2, 3, 64]"],
    );
    refused(norm(&kernels, &x.select(0, 0), &vector), &["x", "[3, 192]"]);
    refused(
        norm(&kernels, &x, &vector.narrow(1, 0, 64)),
        &["scale", "[batch or 1, width]"],
    );
    refused(
        norm(&kernels, &x, &random(&[3, 192], 2, 1.0, 0.0)),
        &["scale", "[3, 192]"],
    );
    // The last axis is not dense; rows start at odd places; an address is no multiple of 16.
    let transposed = random(&[2, 192, 3], 1, 1.0, 0.0).transpose(1, 2);
    refused(norm(&kernels, &transposed, &vector), &["x", "dense rows", "strides"]);
    let odd_rows = random(&[2, 3, 193], 1, 1.0, 0.0).narrow(2, 0, 192);
    refused(norm(&kernels, &odd_rows, &vector), &["x", "multiple of 8 values"]);
    let shifted = random(&[2 * 3 * 192 + 1], 1, 1.0, 0.0)
        .narrow(0, 1, 2 * 3 * 192)
        .view([2, 3, 192]);
    refused(norm(&kernels, &shifted, &vector), &["x", "multiple of 16"]);
    refused(norm(&kernels, &x.set_requires_grad(true), &vector), &["x", "gradient"]);
}

/// One row for all, which a kernel may read, but not write.
#[test]
fn repeated_rows_are_read_and_not_written() {
    let (kernels, vector) = (small(), random(&[1, 1, 192], 2, 1.0, 0.0));
    let one = random(&[1, 1, 192], 1, 1.0, 0.0);
    let repeated = one.expand([2, 3, 192], true);
    let normed = norm(&kernels, &repeated, &vector).unwrap();
    assert!(normed.equal(&norm(&kernels, &one, &vector).unwrap().expand([2, 3, 192], true)));
    let branch = Branch {
        y: &normed,
        text_gate: &vector,
        image_gate: &vector,
    };
    let modulation = NormModulation {
        scale: &vector,
        shift: &vector,
    };
    let result = kernels.residual_norm(&repeated, Some(&branch), &modulation, &modulation, 0, 1e-6);
    refused(result, &["x", "share no memory"]);
}

#[test]
fn numbers_are_checked() {
    let kernels = small();
    let (qkv, weight, rope) = (
        random(&[1, 2, 576], 1, 1.0, 0.0),
        weights(&[32], 2),
        weights(&[2, 32], 3),
    );
    let run = |qkv: &Tensor, rope: &Tensor, heads, text| {
        let weights = QkWeights {
            text_q: &weight,
            text_k: &weight,
            image_q: &weight,
            image_k: &weight,
        };
        kernels.qk_norm_rope(qkv, &weights, rope, heads, text, 1e-6)
    };
    run(&qkv, &rope, 6, 2).unwrap();
    refused(run(&qkv, &rope, 7, 0), &["heads", "1 to 6"]);
    refused(run(&qkv, &rope, 0, 0), &["heads"]);
    refused(run(&qkv, &rope, 6, 3), &["text", "0 to 2 rows"]);
    refused(run(&qkv, &rope, 6, -1), &["text"]);
    refused(run(&qkv.narrow(2, 0, 568), &rope, 6, 0), &["qkv", "568"]);
    refused(run(&qkv, &rope.narrow(0, 0, 1), 6, 0), &["rope", "[T, head_dim]"]);
    refused(run(&qkv, &rope.to_kind(Kind::Double), 6, 0), &["rope", "Float"]);

    let picture = random(&[1, 4, 4, 24], 4, 1.0, 0.0).permute([0, 3, 1, 2]);
    let channels = weights(&[24], 5);
    let run = |x: &Tensor, groups| kernels.group_norm_silu(x, &channels, &channels, groups, 1e-6, true);
    drop(run(&picture, 8).unwrap());
    refused(run(&picture, 5), &["groups", "5 of 24 channels"]);
    refused(run(&picture.contiguous(), 8), &["x", "channels-last"]);
    let mlp = random(&[1, 2, 768], 6, 1.0, 0.0);
    refused(
        kernels.gelu_concat_fp8(Some(&random(&[1, 3, 192], 7, 1.0, 0.0)), &mlp),
        &["attention", "[1, 3, 192]"],
    );
    refused(kernels.attention_fp8(&mlp), &["attention", "[1, 2, 768]"]);
}

#[test]
fn nothing_is_launched_for_no_rows() {
    let (kernels, vector) = (small(), random(&[1, 192], 2, 1.0, 0.0));
    for size in [[0, 3, 192], [2, 0, 192]] {
        let x = Tensor::zeros(size, (Kind::BFloat16, Device::Cpu));
        assert_eq!(norm(&kernels, &x, &vector).unwrap().size(), size);
    }
    let mlp = Tensor::zeros([1, 0, 768], (Kind::BFloat16, Device::Cpu));
    assert_eq!(kernels.gelu_concat_fp8(None, &mlp).unwrap().1.size(), [1, 0, 1]);
    let picture = Tensor::zeros([0, 4, 4, 24], (Kind::BFloat16, Device::Cpu)).permute([0, 3, 1, 2]);
    let channels = weights(&[24], 5);
    let normed = kernels
        .group_norm_silu(&picture, &channels, &channels, 8, 1e-6, true)
        .unwrap();
    assert_eq!(normed.size(), [0, 24, 4, 4]);
}

#[test]
fn a_shape_that_the_emulator_lacks_is_refused() {
    let kernels = kernels([256, 64, 1024], Order::Forward);
    let (x, vector) = (random(&[1, 1, 256], 1, 1.0, 0.0), random(&[1, 256], 2, 1.0, 0.0));
    refused(norm(&kernels, &x, &vector), &["shape", "[256, 64, 1024]"]);
}

/// The bytes of Flux's kernels, counted by their buffers and by their accesses.
#[test]
fn launches_and_bytes_are_counted() {
    let emulator = Arc::new(Emulator::default());
    let counter = Arc::new(Counter::new(emulator.clone()));
    let kernels = Kernels::launched_by(counter.clone(), &shape(FLUX));
    let (rows, width) = (4, 3072);
    let (x, vector) = (random(&[1, rows, width], 1, 1.0, 0.0), random(&[1, width], 2, 1.0, 0.0));
    let branch = Branch {
        y: &x.copy(),
        text_gate: &vector,
        image_gate: &vector,
    };
    let modulation = NormModulation {
        scale: &vector,
        shift: &vector,
    };
    for _ in 0..2 {
        let normed = kernels.residual_norm(&x, Some(&branch), &modulation, &modulation, 1, 1e-6);
        assert_eq!(normed.unwrap().size(), [1, rows, width]);
    }
    let (counted, accessed) = (counter.take(), emulator.take());
    assert_eq!((counted.len(), accessed.len()), (1, 1));
    let (counted, accessed) = (counted[&Kernel::ResidualNorm], accessed[&Kernel::ResidualNorm]);
    assert_eq!((counted.launches, accessed.launches), (2, 2));
    // x and y in; x and the result out; the vectors once a launch for memory, and once a row for the threads.
    let (row, twice) = (2 * width as u64, 2 * rows as u64);
    assert_eq!((counted.written, accessed.written), (2 * twice * row, 2 * twice * row));
    assert_eq!(
        (counted.read, accessed.read),
        (2 * twice * row + 2 * 6 * row, 5 * twice * row)
    );
    assert!(counter.take().is_empty() && emulator.take().is_empty());
}
