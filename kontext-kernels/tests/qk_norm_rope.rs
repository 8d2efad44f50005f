//! The kernel of queries and keys against the same operations in f64.
#![allow(clippy::unwrap_used)]

mod common;

use common::{BF16, FLUX, ODD, SMALL, assert_rounded, in_all_orders, random, shape, weights, wide};
use kontext_core::{Device, Kind, Tensor};
use kontext_kernels::QkWeights;

const EPS: f64 = 1e-6;

/// Cosine and sine in turns, [tokens, head_dim], of angles up to 1000 rad.
fn rope(tokens: i64, head_dim: i64) -> Tensor {
    let angles = Tensor::arange(tokens * head_dim / 2, (Kind::Double, Device::Cpu)) * 7.3;
    let angles = angles.fmod(1000.0).reshape([tokens, head_dim / 2]);
    Tensor::stack(&[angles.cos(), angles.sin()], -1)
        .reshape([tokens, head_dim])
        .to_kind(Kind::Float)
}

/// x [B, T, H, D] normed, weighted and rotated in f64.
fn reference(x: &Tensor, text_weight: &Tensor, image_weight: &Tensor, rope: &Tensor, text: i64) -> Tensor {
    let x = wide(x);
    let inverse = (x.square().mean_dim(-1_i64, true, Kind::Double) + EPS).rsqrt();
    let tokens = x.size()[1];
    let rows = [
        text_weight.expand([text, -1], true),
        image_weight.expand([tokens - text, -1], true),
    ];
    let weight = wide(&Tensor::cat(&rows, 0)).unsqueeze(1);
    let pairs = (x * inverse * weight).unflatten(-1, [-1_i64, 2]);
    let turns = wide(rope).unflatten(-1, [-1_i64, 2]).unsqueeze(1);
    let (a, b) = (pairs.select(-1, 0), pairs.select(-1, 1));
    let (cosine, sine) = (turns.select(-1, 0), turns.select(-1, 1));
    Tensor::stack(&[&a * &cosine - &b * &sine, &b * &cosine + &a * &sine], -1).flatten(-2, -1)
}

/// Runs `heads` heads of a shape with `extra` values after v, and compares.
fn compare(sizes: [i64; 3], heads: i64, [batch, text, image]: [i64; 3], extra: i64) {
    let head_dim = shape(sizes).head_dim();
    let (tokens, width) = (text + image, heads * head_dim);
    let before = random(&[batch, tokens, 3 * width + extra], 1, 2.0, 0.1);
    let rope = rope(tokens, head_dim);
    let vectors: Vec<_> = (2..6).map(|seed| weights(&[head_dim], seed)).collect();
    let [after] = in_all_orders(sizes, |kernels| {
        let qkv = before.copy();
        let weights = QkWeights {
            text_q: &vectors[0],
            text_k: &vectors[1],
            image_q: &vectors[2],
            image_k: &vectors[3],
        };
        kernels.qk_norm_rope(&qkv, &weights, &rope, heads, text, EPS).unwrap();
        [qkv]
    });
    for (index, (text_weight, image_weight)) in [(0, 2), (1, 3)].into_iter().enumerate() {
        let part = |x: &Tensor| {
            x.narrow(2, index as i64 * width, width)
                .unflatten(-1, [heads, head_dim])
        };
        let expected = reference(
            &part(&before),
            &vectors[text_weight],
            &vectors[image_weight],
            &rope,
            text,
        );
        assert_rounded(&part(&after), &expected, BF16);
    }
    let rest = |x: &Tensor| x.narrow(2, 2 * width, width + extra);
    assert!(rest(&after).equal(&rest(&before)), "values after the keys changed");
}

#[test]
fn flux_in_rows_of_a_double_and_a_single_block() {
    compare(FLUX, 24, [1, 3, 4], 0);
    compare(FLUX, 24, [1, 2, 2], 12_288);
}

#[test]
fn heads_that_end_within_a_warp() {
    compare(SMALL, 6, [1, 5, 16], 768);
    compare(ODD, 9, [1, 3, 9], 0);
    // Fewer heads than the width has.
    compare(ODD, 4, [1, 3, 9], 8);
}

#[test]
fn batches_share_the_angles() {
    compare(SMALL, 6, [3, 4, 8], 0);
}

#[test]
fn one_stream_has_all_rows() {
    compare(SMALL, 6, [1, 0, 8], 0);
    compare(SMALL, 6, [1, 8, 0], 0);
}
