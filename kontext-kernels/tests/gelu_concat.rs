//! The kernel of attention and GELU in one quantised row against the same operations in f64.
#![allow(clippy::unwrap_used)]

mod common;

use common::{FLUX, ODD, SMALL, assert_quantised, in_all_orders, random, shape, wide};
use kontext_core::Tensor;

fn compare(sizes: [i64; 3], [batch, rows]: [i64; 2], with_attention: bool) {
    let shape = shape(sizes);
    // As in a single block: the MLP's rows follow those of q, k and v.
    let joint = random(&[batch, rows, 3 * shape.width() + shape.mlp_width()], 1, 1.5, 0.0);
    let mlp = joint.narrow(2, 3 * shape.width(), shape.mlp_width());
    let attention = with_attention.then(|| random(&[batch, rows, shape.width()], 2, 1.0, 0.0));
    let [codes, factors] = in_all_orders(sizes, |kernels| {
        let (codes, factors) = kernels.gelu_concat_fp8(attention.as_ref(), &mlp).unwrap();
        [codes, factors]
    });
    let activated = wide(&mlp).gelu("tanh");
    let expected = match &attention {
        Some(attention) => Tensor::cat(&[wide(attention), activated], -1),
        None => activated,
    };
    assert_quantised(&codes, &factors, &expected);
}

#[test]
fn flux_with_and_without_attention() {
    compare(FLUX, [1, 3], true);
    compare(FLUX, [1, 2], false);
}

#[test]
fn rows_that_end_within_a_warp() {
    for with_attention in [true, false] {
        compare(SMALL, [2, 6], with_attention);
        compare(ODD, [1, 6], with_attention);
    }
}

#[test]
fn an_attention_without_an_mlp_is_rounded_as_it_is() {
    for (sizes, rows) in [(FLUX, [1, 2]), (SMALL, [2, 6]), (ODD, [1, 6])] {
        // The heads of a longer row.
        let width = shape(sizes).width();
        let attention = random(&[rows[0], rows[1], 2 * width], 2, 1.0, 0.0).narrow(2, width, width);
        let [codes, factors] = in_all_orders(sizes, |kernels| {
            let (codes, factors) = kernels.attention_fp8(&attention).unwrap();
            [codes, factors]
        });
        assert_eq!(codes.size(), attention.size());
        assert_quantised(&codes, &factors, &wide(&attention));
    }
}

#[test]
fn a_row_of_zeros_has_codes_of_zero_and_a_finite_factor() {
    let mlp = Tensor::zeros([1, 1, 768], (kontext_core::Kind::BFloat16, kontext_core::Device::Cpu));
    let [codes, factors] = in_all_orders(SMALL, |kernels| {
        let (codes, factors) = kernels.gelu_concat_fp8(None, &mlp).unwrap();
        [codes, factors]
    });
    assert_eq!(wide(&codes).abs().max().double_value(&[]), 0.0);
    let factor = factors.double_value(&[0, 0, 0]);
    assert!(factor > 0.0 && factor < 1e-12, "{factor:e}");
}

/// Far from zero the quotient of the GELU is x or zero, not NaN.
#[test]
fn large_values_saturate() {
    let mlp = Tensor::zeros([1, 1, 768], (kontext_core::Kind::BFloat16, kontext_core::Device::Cpu));
    for (at, value) in [(0, 60_000.0), (1, -60_000.0), (2, -3e38), (3, 448.0)] {
        let _ = mlp.narrow(2, at, 1).fill_(value);
    }
    let [codes, factors] = in_all_orders(SMALL, |kernels| {
        let (codes, factors) = kernels.gelu_concat_fp8(None, &mlp).unwrap();
        [codes, factors]
    });
    let values = wide(&codes) * wide(&factors);
    assert_eq!(values.double_value(&[0, 0, 1]), 0.0);
    assert_eq!(values.double_value(&[0, 0, 2]), 0.0);
    let largest = mlp.double_value(&[0, 0, 0]);
    assert!((values.double_value(&[0, 0, 0]) / largest - 1.0).abs() < 1e-6);
}
