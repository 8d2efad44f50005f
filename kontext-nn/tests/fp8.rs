//! Linear layers that multiply in fp8, against f64 on the rounded values, in every form in which the weights come.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use kontext_core::{Device, Kind, Tensor, check, noise};
use kontext_formats::{Quantize, save};
use kontext_nn::{Adapters, Fp8Rows, Linear, LinearAdapter, Offload, Weights, without_fp8};

const INPUT: i64 = 96;
const OUTPUT: i64 = 80;

fn draw(shape: &[i64], seed: u64) -> Tensor {
    noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
}

/// Rows of different sizes.
fn weight() -> Tensor {
    draw(&[OUTPUT, INPUT], 1) * Tensor::linspace(0.01, 1.0, OUTPUT, (Kind::Float, Device::Cpu)).unsqueeze(1)
}

fn bias() -> Tensor {
    draw(&[OUTPUT], 2)
}

fn tensors(named: Vec<(&str, Tensor)>) -> Vec<(String, Tensor)> {
    named
        .into_iter()
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect()
}

/// The plain layer, which is quantised when it is read.
fn plain() -> Weights {
    Weights::from_tensors(tensors(vec![("a.weight", weight()), ("a.bias", bias())])).quantized(Some(Quantize::Fp8))
}

/// A file in e4m3 with these scales next to the weight, or none.
fn file(folder: &Path, scale: Option<&Tensor>) -> Weights {
    let codes = match scale {
        Some(scale) => weight() / scale,
        None => weight(),
    };
    let mut named = vec![("a.weight", codes.to_kind(Kind::Float8e4m3fn)), ("a.bias", bias())];
    if let Some(scale) = scale {
        named.push(("a.scale_weight", scale.shallow_clone()));
        named.push(("scaled_fp8", Tensor::zeros([0], (Kind::Float8e4m3fn, Device::Cpu))));
    }
    let path = folder.join("weights.safetensors");
    save(&path, &tensors(named), None).unwrap();
    Weights::open(path).unwrap()
}

fn layer(weights: &Weights) -> Linear {
    Linear::new(&weights.at("a"), INPUT, OUTPUT).unwrap()
}

/// The layer's weight as it is stored, in f64.
fn stored(weights: &Weights) -> Tensor {
    let unpacked = layer(&weights.clone().fp8_products(false));
    let identity = Tensor::eye(INPUT, (Kind::Float, Device::Cpu));
    let columns = unpacked.forward(&identity).unwrap() - unpacked.forward(&identity.zeros_like()).unwrap();
    // The difference rounds: the nearest value of the format is the stored one, to 1e-6.
    columns.tr().to_kind(Kind::Double)
}

/// The product of the rounded `x` with the weight, in f64, with the bias.
fn expected(x: &Tensor, weight: &Tensor) -> Tensor {
    let rows = Fp8Rows::quantise(x).unwrap();
    let x = rows.codes().to_kind(Kind::Double) * rows.factors().to_kind(Kind::Double);
    x.matmul(&weight.tr()) + bias().to_kind(Kind::Double)
}

/// Asserts the relative distance by the L2 norm.
#[track_caller]
fn assert_near(a: &Tensor, b: &Tensor, bound: f64) {
    let error = check::relative_l2(a, b).unwrap();
    assert!(error < bound, "{error:e}");
}

/// Of sums in f32, and of [`stored`].
const F32: f64 = 2e-6;
/// Of one rounding to bf16.
const BF16: f64 = 2e-3;

#[test]
fn every_form_of_fp8_weights_multiplies_the_rounded_input() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let rows = (weight().abs().amax([1], true) / 448.0).contiguous();
    let all = Tensor::from(0.01_f32);
    let forms = [
        ("at load", plain()),
        ("one scale", file(&path("one"), Some(&all))),
        ("a scale a row", file(&path("rows"), Some(&rows))),
        ("no scale", file(&path("none"), None)),
        (
            "left in the file",
            file(&path("left"), Some(&all)).offload(Offload::All),
        ),
        ("left without a scale", file(&path("plain"), None).offload(Offload::All)),
    ];
    let x = draw(&[2, 3, INPUT], 3);
    for (name, weights) in forms {
        let weights = weights.fp8_products(true);
        let layer = layer(&weights);
        assert!(layer.multiplies_in_fp8(0..OUTPUT, Kind::Float), "{name}");
        let expected = expected(&x, &stored(&weights));
        assert_near(&layer.forward(&x).unwrap(), &expected, F32);
        let unpacked = without_fp8(|| layer.forward(&x)).unwrap();
        let loss = check::relative_l2(&unpacked, &expected).unwrap();
        // The input's rounding alone: 2.65e-2 for normal values, less for the share of the bias.
        assert!((5e-3..3e-2).contains(&loss), "{name}: {loss}");
        let narrow = layer.forward(&x.to_kind(Kind::BFloat16)).unwrap();
        assert_eq!(narrow.kind(), Kind::BFloat16);
        let wide = x.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        assert_near(&narrow, &layer.forward(&wide).unwrap(), BF16);
    }
}

#[test]
fn any_number_of_rows_and_strided_ones_multiply() {
    let weights = plain().fp8_products(true);
    let (layer, dense) = (layer(&weights), stored(&weights));
    for rows in [1, 7, 33] {
        let x = draw(&[rows, 2 * INPUT], 3).narrow(-1, INPUT, INPUT);
        assert_near(&layer.forward(&x).unwrap(), &expected(&x, &dense), F32);
        let turned = draw(&[INPUT, rows], 3).tr();
        assert_near(&layer.forward(&turned).unwrap(), &expected(&turned, &dense), F32);
    }
    let none = layer.forward(&draw(&[1, INPUT], 3).narrow(0, 0, 0)).unwrap();
    assert_eq!(none.size(), [0, OUTPUT]);
}

#[test]
fn rows_sums_and_parts_of_larger_tensors_are_those_of_the_whole() {
    let layer = layer(&plain().fp8_products(true));
    let x = draw(&[2, 5, INPUT], 3);
    let whole = layer.forward(&x).unwrap();
    assert!(layer.forward_rows(&x, 16, 48).unwrap().equal(&whole.narrow(-1, 16, 48)));
    let sum = draw(&[2, 5, OUTPUT], 4);
    assert_near(&layer.forward_add(&x, &sum).unwrap(), &(&whole + &sum), F32);
    assert_near(&layer.accumulate(&x, sum.copy()).unwrap(), &(&whole + &sum), F32);
    let gelu = layer.forward_gelu(&x, 32..80).unwrap();
    assert!(gelu.equal(&whole.narrow(-1, 32, 48).contiguous().gelu("tanh")));
    let joint = Tensor::zeros([2, 9, OUTPUT], (Kind::Float, Device::Cpu));
    layer.forward_to(&x, 0..OUTPUT, &joint.narrow(1, 3, 5)).unwrap();
    assert!(joint.narrow(1, 3, 5).equal(&whole));
    assert_eq!(joint.narrow(1, 8, 1).abs().max().double_value(&[]), 0.0);
}

#[test]
fn a_split_input_adds_up_with_a_factor_for_each_half() {
    let weights = plain().fp8_products(true);
    let (layer, dense) = (layer(&weights), stored(&weights));
    let (first, second) = layer.split_input(32).unwrap();
    let x = draw(&[5, INPUT], 3)
        * Tensor::cat(
            &[
                Tensor::ones([32], (Kind::Float, Device::Cpu)),
                Tensor::full([64], 50.0, (Kind::Float, Device::Cpu)),
            ],
            0,
        );
    let halves = [x.narrow(-1, 0, 32), x.narrow(-1, 32, 64)];
    let sum = second
        .accumulate(&halves[1], first.forward(&halves[0]).unwrap())
        .unwrap();
    let rounded = halves.map(|half| Fp8Rows::quantise(&half).unwrap().dense(Kind::Double).unwrap());
    let expected = Tensor::cat(&rounded, -1).matmul(&dense.tr()) + bias();
    assert_near(&sum, &expected, F32);
    // The whole has one factor for both halves, and stays usable.
    let whole = layer.forward(&x).unwrap();
    assert!(check::relative_l2(&whole, &expected).unwrap() > 1e-4);
}

#[test]
fn an_input_that_is_rounded_already_gives_the_bits_of_one_that_is_not() {
    let layer = layer(&plain().fp8_products(true));
    let x = draw(&[2, 5, INPUT], 3).to_kind(Kind::BFloat16);
    let rounded = Fp8Rows::quantise(&x).unwrap();
    let whole = layer.forward(&x).unwrap();
    let part = layer.forward_fp8(&rounded, 32..80, Kind::BFloat16).unwrap();
    assert!(part.equal(&whole.narrow(-1, 32, 48)));
    let some = layer
        .forward_fp8(&rounded.rows(1, 3).unwrap(), 0..OUTPUT, Kind::BFloat16)
        .unwrap();
    assert!(some.equal(&whole.narrow(1, 1, 3)));
    let joint = Tensor::zeros([2, 9, OUTPUT], (Kind::BFloat16, Device::Cpu));
    layer
        .forward_fp8_to(&rounded, 0..OUTPUT, &joint.narrow(1, 3, 5))
        .unwrap();
    assert!(joint.narrow(1, 3, 5).equal(&whole));
    // Unpacked, the layer takes the codes times the factors.
    let unpacked = without_fp8(|| layer.forward_fp8(&rounded, 0..OUTPUT, Kind::Float)).unwrap();
    let same = without_fp8(|| layer.forward(&rounded.dense(Kind::Float).unwrap())).unwrap();
    assert!(unpacked.equal(&same));
    assert!(layer.forward_fp8(&rounded, 32..96, Kind::Float).is_err());
}

#[test]
fn adapters_add_to_the_product() {
    let adapter = || LinearAdapter::low_rank(draw(&[4, INPUT], 5), draw(&[OUTPUT, 4], 6), 0.5, 0).unwrap();
    let delta = draw(&[OUTPUT, 4], 6).matmul(&draw(&[4, INPUT], 5)) * 0.5;
    let (weights, slots) = plain().fp8_products(true).with_slots();
    let (layer, x) = (layer(&weights), draw(&[5, INPUT], 3));
    let rounded = Fp8Rows::quantise(&x).unwrap();
    let before = layer.forward(&x).unwrap();
    let mut adapters = Adapters::new();
    adapters.add("a", adapter());
    assert!(layer.takes_fp8(16..48, Kind::Float) && !layer.takes_fp8(16..40, Kind::Float));
    slots.set(&adapters).unwrap();
    assert!(layer.multiplies_in_fp8(16..48, Kind::Float) && !layer.takes_fp8(16..48, Kind::Float));
    assert_near(&(layer.forward(&x).unwrap() - &before), &x.matmul(&delta.tr()), 1e-5);
    let given = layer.forward_fp8(&rounded, 16..48, Kind::Float).unwrap() - before.narrow(-1, 16, 32);
    let input = rounded.dense(Kind::Float).unwrap();
    assert_near(&given, &input.matmul(&delta.tr()).narrow(-1, 16, 32), 1e-5);
}

#[test]
fn layers_for_which_fp8_is_not_unpack_as_before() {
    let x = draw(&[5, INPUT], 3);
    let unpacked = layer(&plain()).forward(&x).unwrap();
    let fp8 = || plain().fp8_products(true);
    // A gradient goes through the unpacked weight.
    let input = x.copy().set_requires_grad(true);
    let y = layer(&fp8()).forward(&input).unwrap();
    assert_near(&y, &unpacked, F32);
    y.sum(Kind::Float).backward();
    let column_sums = stored(&plain()).sum_dim_intlist(0, false, Kind::Double);
    assert_near(&input.grad().select(0, 4), &column_sums, F32);
    // Layers used once are not quantised, other formats have no such product, and sizes have to be multiples of 16.
    let once = layer(&fp8().used_once());
    assert!(!once.multiplies_in_fp8(0..OUTPUT, Kind::Float));
    assert_near(&once.forward(&x).unwrap(), &(x.matmul(&weight().tr()) + bias()), F32);
    let q8 = layer(&fp8().quantized(Some(Quantize::Q8_0)));
    assert!(!q8.multiplies_in_fp8(0..OUTPUT, Kind::Float));
    let whole = layer(&fp8());
    assert!(whole.multiplies_in_fp8(16..32, Kind::BFloat16) && !whole.multiplies_in_fp8(0..20, Kind::Float));
    assert!(!whole.multiplies_in_fp8(0..OUTPUT, Kind::Half));
    let rows = whole.forward_rows(&x, 0, 20).unwrap();
    assert_near(&rows, &unpacked.narrow(-1, 0, 20), F32);
}
