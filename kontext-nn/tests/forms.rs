//! Weights in every form that other programs write, compared with the values that those programs read.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::{Form, forms, written};
use kontext_core::{Device, Kind, Tensor, check, noise};
use kontext_nn::{Linear, Offload, Weights};

/// Calls `test` with the weights of each form, in memory and left in their file.
fn for_each_form(test: impl Fn(&Form, &Weights, &str)) {
    let forms = forms();
    assert_eq!(forms.len(), 27);
    for form in &forms {
        let (_folder, path) = written(&form.file);
        for left in [Offload::None, Offload::All] {
            let weights = Weights::open(&path).unwrap().offload(left);
            test(form, &weights, &format!("{}, left in file: {left:?}", form.name));
        }
    }
}

/// Checks that two weights are equal: to the bit, except for bitsandbytes' int8. bitsandbytes multiplies by
/// the row's maximum and then by 1/127, and here their product is one scale: two roundings of half an ulp on
/// either side, at most 2^-22 of the value.
fn check_equal(form: &Form, got: &Tensor, case: &str) {
    if form.name == "bnb.int8" {
        assert!(got.allclose(&form.weight, 2.0_f64.powi(-22), 0.0, false), "{case}");
    } else {
        assert!(got.equal(&form.weight), "{case}");
    }
}

/// Returns the layer and its bias, zeros if it has none.
fn layer(form: &Form, weights: &Weights) -> (Linear, Tensor) {
    let [output, input] = form.shape;
    let w = weights.clone().at_most(Kind::Float).at(form.layer());
    if !w.contains("bias") {
        return (
            Linear::without_bias(&w, input, output).unwrap(),
            Tensor::zeros([output], (Kind::Float, Device::Cpu)),
        );
    }
    let bias = w.tensor("bias", &[output]).unwrap().to_kind(Kind::Float);
    (Linear::new(&w, input, output).unwrap(), bias)
}

fn draw(shape: &[i64], seed: u64) -> Tensor {
    noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
}

#[test]
fn every_form_reads_as_the_values_that_its_own_program_reads() {
    for_each_form(|form, weights, case| {
        let weight = weights
            .clone()
            .kind(Kind::Float)
            .at(form.layer())
            .tensor("weight", &form.shape)
            .unwrap();
        check_equal(form, &weight, case);
        assert!(weights.store().first_not_finite().unwrap().is_none(), "{case}");
    });
}

#[test]
fn every_form_multiplies_the_identity_to_its_values() {
    for_each_form(|form, weights, case| {
        let (linear, bias) = layer(form, weights);
        let identity = Tensor::eye(form.shape[1], (Kind::Float, Device::Cpu));
        // Sums of one product and zeros are exact; the bias would round them.
        let no_bias = Linear::without_bias(&weights.at(form.layer()), form.shape[1], form.shape[0]).unwrap();
        check_equal(form, &no_bias.forward(&identity).unwrap().transpose(0, 1), case);
        let expected = form.weight.transpose(0, 1) + bias;
        assert!(
            check::relative_l2(&linear.forward(&identity).unwrap(), &expected).unwrap() < 1e-6,
            "{case}"
        );
    });
}

/// In bf16 the identity gives the values rounded once, whatever their form: they are unpacked to bf16 directly.
#[test]
fn every_form_multiplies_the_identity_in_bf16_to_its_values_rounded_once() {
    for_each_form(|form, weights, case| {
        let identity = Tensor::eye(form.shape[1], (Kind::BFloat16, Device::Cpu));
        let linear = Linear::without_bias(&weights.at(form.layer()), form.shape[1], form.shape[0]).unwrap();
        let got = linear.forward(&identity).unwrap().transpose(0, 1);
        let expected = form.weight.to_kind(Kind::BFloat16);
        assert_eq!(got.kind(), Kind::BFloat16, "{case}");
        if form.name == "bnb.int8" {
            // Values that differ by 2^-22 may round to neighbours, 2^-8 apart.
            assert!(got.allclose(&expected, 2.0_f64.powi(-7), 0.0, false), "{case}");
        } else {
            assert!(got.equal(&expected), "{case}");
        }
        // Added to a sum in its full width before the product is rounded.
        let sum = Tensor::ones([form.shape[1], form.shape[0]], (Kind::BFloat16, Device::Cpu));
        let got = linear.forward_add(&identity, &sum).unwrap();
        let expected = expected.transpose(0, 1).to_kind(Kind::Float) + 1.0;
        assert!(
            got.to_kind(Kind::Float)
                .allclose(&expected, 2.0_f64.powi(-8), 0.0, false),
            "{case}"
        );
    });
}

/// Compares products in f32. Both sides sum 256 of them, in different orders: errors of some 2^-24 times the
/// root of 256, 1e-6. The threshold is ten times that, and far below the step of the finest format, Q8_0:
/// 4e-3.
#[test]
fn every_form_multiplies_as_its_values_within_1e_5() {
    for_each_form(|form, weights, case| {
        let [output, input] = form.shape;
        let (x, sum) = (draw(&[2, 3, input], 1), draw(&[2, 3, output], 2));
        let close = |what: &str, got: &Tensor, expected: &Tensor| {
            assert_eq!(got.size(), expected.size(), "{what}, {case}");
            let distance = check::relative_l2(got, expected).unwrap();
            assert!(distance < 1e-5, "{what}, {case}: {distance}");
        };
        let (linear, bias) = layer(form, weights);
        let expected = x.matmul(&form.weight.transpose(0, 1)) + bias;
        close("forward", &linear.forward(&x).unwrap(), &expected);
        close(
            "forward_add",
            &linear.forward_add(&x, &sum).unwrap(),
            &(&expected + &sum),
        );
        close(
            "forward_rows",
            &linear.forward_rows(&x, 3, 4).unwrap(),
            &expected.narrow(-1, 3, 4),
        );
        let in_place = linear.accumulate(&x, sum.copy()).unwrap();
        close("accumulate", &in_place, &(&expected + &sum));
        let joint = Tensor::zeros([2, 5, output + 3], (Kind::Float, Device::Cpu));
        let part = joint.narrow(1, 1, 3).narrow(2, 2, output);
        linear.forward_to(&x, 0..output, &part).unwrap();
        close("forward_to", &part, &expected);
        close(
            "forward_gelu",
            &linear.forward_gelu(&x, 3..7).unwrap(),
            &expected.narrow(-1, 3, 4).gelu("tanh"),
        );
        // 100 is within a block of every format.
        let (first, second) = linear.split_input(100).unwrap();
        let part = first.forward(&x.narrow(-1, 0, 100)).unwrap();
        let whole = second.forward_add(&x.narrow(-1, 100, input - 100), &part).unwrap();
        close("split_input", &whole, &expected);
    });
}

#[test]
fn an_account_names_the_format_and_has_no_more_bytes_than_the_file() {
    for_each_form(|form, weights, case| {
        let format = match form.name.rsplit_once('.').unwrap() {
            (_, "F32") => "Float",
            (_, "F16") => "Half",
            (_, "BF16") => "BFloat16",
            ("gguf", name) => name,
            ("float8_e4m3fn", _) => "Float8e4m3fn",
            ("float8_e5m2", _) => "Float8e5m2",
            (_, "fp4") => "FP4",
            (_, "int8") => "INT8",
            _ => "NF4",
        };
        let account = weights.store().account();
        let parameters = form.shape[0] * form.shape[1];
        assert!(account.dtypes[format] >= parameters as u64, "{case}: {account:?}");
        assert!(account.bytes <= form.file.len() as u64, "{case}: {account:?}");
        // Except for metadata, names and shapes, all of the file is accounted for.
        assert!(account.bytes + 1024 > form.file.len() as u64, "{case}: {account:?}");
    });
}

#[test]
fn a_layer_leaves_nothing_of_its_file_unused() {
    for_each_form(|form, weights, case| {
        let _ = layer(form, weights);
        weights
            .finish()
            .unwrap_or_else(|error| panic!("{case}: {}", common::chain(&error)));
    });
}
