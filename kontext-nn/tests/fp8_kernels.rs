//! Linear layers on activations that the kernels of `kontext-kernels` write in fp8, in the emulator.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kontext_core::{Device, Kind, Tensor, check, noise};
use kontext_emulator::{Emulator, Order};
use kontext_formats::Quantize;
use kontext_kernels::{KernelShape, Kernels, NormModulation};
use kontext_nn::{Fp8Rows, Linear, Weights};

/// Width, width of a head and width of the MLP of the repository's small model.
const SIZES: [i64; 3] = [192, 32, 768];

fn kernels() -> Kernels {
    let shape = KernelShape::new(SIZES[0], SIZES[1], SIZES[2]).unwrap();
    Kernels::launched_by(Arc::new(Emulator::new(Order::Forward)), &shape)
}

fn draw(shape: &[i64], seed: u64) -> Tensor {
    noise::randn(shape, seed, Kind::Float, Device::Cpu)
        .unwrap()
        .to_kind(Kind::BFloat16)
}

/// A layer in fp8, and its stored weight in f64.
fn layer(output: i64, input: i64) -> (Linear, Tensor) {
    let weight = draw(&[output, input], 9).to_kind(Kind::Float) * 0.1;
    let stored = Quantize::Fp8.matrix(&weight).unwrap().dense(&[output, input]).unwrap();
    let weights = Weights::from_tensors([
        ("weight".to_owned(), weight),
        ("bias".to_owned(), draw(&[output], 10).to_kind(Kind::Float)),
    ]);
    let weights = weights.quantized(Some(Quantize::Fp8)).fp8_products(true);
    (
        Linear::new(&weights, input, output).unwrap(),
        stored.to_kind(Kind::Double),
    )
}

fn bits(rows: &Fp8Rows) -> Tensor {
    rows.codes().view_dtype(Kind::Uint8)
}

#[test]
fn a_kernel_and_this_crate_round_rows_to_the_same_codes_and_factors() {
    let attention = draw(&[2, 3, SIZES[0]], 1);
    // Their GELU is zero: the attention has the largest magnitude.
    let mlp = Tensor::full([2, 3, SIZES[2]], -100.0, (Kind::BFloat16, Device::Cpu));
    let (codes, factors) = kernels().gelu_concat_fp8(Some(&attention), &mlp).unwrap();
    let rows = Fp8Rows::new(codes, factors).unwrap();
    let ours = Fp8Rows::quantise(&attention).unwrap();
    assert!(bits(&rows).narrow(-1, 0, SIZES[0]).equal(&bits(&ours)));
    assert!(rows.factors().equal(ours.factors()));
}

/// The kernel rounds sums in f32 to fp8; without it they are rounded to bf16 first, and so is a row's largest
/// magnitude. A value is off by up to 2^-8 then, and one that passes the middle of two codes, whose distance is 2^-4 to
/// 2^-3 of it, takes the next code: on average one in about forty.
#[test]
fn a_norm_in_fp8_has_the_codes_of_the_one_in_bf16_but_for_values_between_two() {
    let x = draw(&[2, 40, SIZES[0]], 1);
    let (scale, shift) = (draw(&[1, SIZES[0]], 2), draw(&[1, SIZES[0]], 3));
    let norm = NormModulation {
        scale: &scale,
        shift: &shift,
    };
    let kernels = kernels();
    let (codes, factors) = kernels.residual_norm_fp8(&x, None, &norm, &norm, 3, 1e-6).unwrap();
    let once = Fp8Rows::new(codes, factors).unwrap();
    let twice = Fp8Rows::quantise(&kernels.residual_norm(&x, None, &norm, &norm, 3, 1e-6).unwrap()).unwrap();
    // Codes in order of their values.
    let places = |rows: &Fp8Rows| {
        let bits = bits(rows).to_kind(Kind::Int);
        let magnitude = bits.remainder(128);
        magnitude.where_self(&bits.less(128), &-&magnitude)
    };
    let apart = (places(&once) - places(&twice)).abs();
    assert_eq!(apart.max().int64_value(&[]), 1);
    let others = apart.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert!((0.005..0.05).contains(&others), "{others}");
    let factors = (once.factors() / twice.factors() - 1.0).abs().max().double_value(&[]);
    assert!(factors <= 1.0 / 256.0, "{factors}");
}

#[test]
fn one_product_of_attention_and_mlp_is_that_of_the_rounded_row() {
    let (width, mlp_width) = (SIZES[0], SIZES[2]);
    let (linear2, weight) = layer(width, width + mlp_width);
    let (attention, mlp) = (draw(&[1, 5, width], 1), draw(&[1, 5, mlp_width], 2));
    let (codes, factors) = kernels().gelu_concat_fp8(Some(&attention), &mlp).unwrap();
    let rows = Fp8Rows::new(codes, factors).unwrap();
    let y = linear2.forward_fp8(&rows, 0..width, Kind::BFloat16).unwrap();
    assert_eq!(y.kind(), Kind::BFloat16);
    let bias = draw(&[width], 10).to_kind(Kind::Double);
    let expected = rows.dense(Kind::Double).unwrap().matmul(&weight.tr()) + &bias;
    // One rounding to bf16.
    let error = check::relative_l2(&y, &expected).unwrap();
    assert!(error < 2e-3, "{error:e}");
    // Without the rounding of the activations, and as the two products of a split layer.
    let exact = Tensor::cat(
        &[attention.to_kind(Kind::Double), mlp.to_kind(Kind::Double).gelu("tanh")],
        -1,
    );
    let exact = exact.matmul(&weight.tr()) + bias;
    let (first, second) = linear2.split_input(width).unwrap();
    let split = second
        .accumulate(&mlp.gelu("tanh"), first.forward(&attention).unwrap())
        .unwrap();
    for y in [y, split] {
        let loss = check::relative_l2(&y, &exact).unwrap();
        assert!((5e-3..4e-2).contains(&loss), "{loss}");
    }
}

#[test]
fn a_norm_in_fp8_projects_both_streams_to_one_tensor() {
    let (width, text) = (SIZES[0], 2);
    let (qkv, weight) = layer(3 * width, width);
    let x = draw(&[1, 5, width], 1);
    let (scale, shift) = (draw(&[1, width], 2), draw(&[1, width], 3));
    let norm = NormModulation {
        scale: &scale,
        shift: &shift,
    };
    let (codes, factors) = kernels().residual_norm_fp8(&x, None, &norm, &norm, text, 1e-6).unwrap();
    let rows = Fp8Rows::new(codes, factors).unwrap();
    let joint = Tensor::zeros([1, 5, 3 * width], (Kind::BFloat16, Device::Cpu));
    for (start, count) in [(0, text), (text, 5 - text)] {
        let part = rows.rows(start, count).unwrap();
        qkv.forward_fp8_to(&part, 0..3 * width, &joint.narrow(1, start, count))
            .unwrap();
    }
    let expected =
        rows.dense(Kind::Double).unwrap().matmul(&weight.tr()) + draw(&[3 * width], 10).to_kind(Kind::Double);
    let error = check::relative_l2(&joint, &expected).unwrap();
    assert!(error < 2e-3, "{error:e}");
}
