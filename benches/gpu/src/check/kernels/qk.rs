//! Norm and rotation of queries and keys.

use kontext::{Kind, Tensor};
use kontext_kernels::{Kernels, QkWeights};

use super::inputs::{Rows, random, weights};
use super::work::{Work, bytes_of, to_bf16};
use crate::row::Outcome;

const EPS: f64 = 1e-6;

/// Inputs: rows of q, k and v, the angles, and the weights of text and image for q and k.
struct Inputs {
    rows: Rows,
    heads: i64,
    head_dim: i64,
    qkv: Tensor,
    rope: Tensor,
    weights: [[Tensor; 2]; 2],
}

pub(super) fn check(kernels: &Kernels, rows: Rows, outcome: &mut Outcome) -> anyhow::Result<()> {
    let (on, head_dim) = (kernels.device(), kernels.shape().head_dim());
    let width = kernels.shape().width();
    let weight = |seed| weights(on, &[head_dim], seed);
    let inputs = Inputs {
        rows,
        heads: width / head_dim,
        head_dim,
        qkv: random(on, &[1, rows.all(), 3 * width], 1, 2.0, 0.1)?,
        rope: rope(rows.all(), head_dim).to_device(on),
        weights: [[weight(2)?, weight(3)?], [weight(4)?, weight(5)?]],
    };
    let launch = |qkv: &Tensor| -> anyhow::Result<()> {
        let [[text_q, image_q], [text_k, image_k]] = &inputs.weights;
        let weights = QkWeights {
            text_q,
            text_k,
            image_q,
            image_k,
        };
        Ok(kernels.qk_norm_rope(qkv, &weights, &inputs.rope, inputs.heads, rows.text, EPS)?)
    };
    let exact = inputs.parts(&inputs.qkv).into_iter().zip(&inputs.weights);
    let exact = exact.map(|(part, weights)| inputs.norm_and_rotate(&part, weights, Kind::Double));
    let changed = inputs.qkv.copy();
    let moved = bytes_of([&inputs.qkv]) / 3 * 4 + bytes_of([&inputs.rope]);
    let work = Work {
        exact: exact.collect(),
        results: &|| {
            let qkv = inputs.qkv.copy();
            launch(&qkv)?;
            Ok(inputs.parts(&qkv).into())
        },
        plain: &|| {
            let parts = inputs.parts(&inputs.qkv).into_iter().zip(&inputs.weights);
            let normed = parts.map(|(part, weights)| inputs.norm_and_rotate(&part, weights, Kind::Float));
            Ok(normed.map(|x| x.to_kind(Kind::BFloat16)).collect())
        },
        launch: &|| launch(&changed),
        bytes: moved,
        round: to_bf16,
    };
    work.measure(on, outcome)
}

/// Returns cosine and sine in turns, [tokens, head_dim], of angles up to 1000 rad.
fn rope(tokens: i64, head_dim: i64) -> Tensor {
    let angles = Tensor::arange(tokens * head_dim / 2, (Kind::Double, kontext::Device::Cpu)) * 7.3;
    let angles = angles.fmod(1000.0).reshape([tokens, head_dim / 2]);
    Tensor::stack(&[angles.cos(), angles.sin()], -1)
        .reshape([tokens, head_dim])
        .to_kind(Kind::Float)
}

impl Inputs {
    /// Returns queries and keys, each [1, rows, heads, head_dim].
    fn parts(&self, qkv: &Tensor) -> [Tensor; 2] {
        let width = self.heads * self.head_dim;
        [0, 1].map(|index| {
            qkv.narrow(2, index * width, width)
                .unflatten(-1, [self.heads, self.head_dim])
        })
    }

    /// Norms and rotates by libtorch's operations, as the transformer does without kernels; computes in `kind`.
    fn norm_and_rotate(&self, x: &Tensor, [text, image]: &[Tensor; 2], kind: Kind) -> Tensor {
        let weight = self.rows.spread([text, image]).to_kind(kind).unsqueeze(1);
        let normed = x.to_kind(kind).rms_norm([self.head_dim], None::<&Tensor>, EPS);
        let pairs = (normed * weight).unflatten(-1, [-1_i64, 2]);
        let turns = self.rope.to_kind(kind).unflatten(-1, [-1_i64, 2]).unsqueeze(1);
        let (a, b) = (pairs.select(-1, 0), pairs.select(-1, 1));
        let (cosine, sine) = (turns.select(-1, 0), turns.select(-1, 1));
        Tensor::stack(&[&a * &cosine - &b * &sine, &b * &cosine + &a * &sine], -1).flatten(-2, -1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::inputs::wide;
    use super::*;

    #[test]
    fn the_norm_is_of_unit_mean_square_and_the_rotation_keeps_it() {
        let on = kontext::Device::Cpu;
        let one = || Tensor::ones([32], (Kind::Float, on));
        let inputs = Inputs {
            rows: Rows { text: 1, image: 2 },
            heads: 2,
            head_dim: 32,
            qkv: random(on, &[1, 3, 192], 1, 5.0, 0.0).expect("drawn"),
            rope: rope(3, 32),
            weights: [[one(), one()], [one(), one()]],
        };
        for (part, weights) in inputs.parts(&inputs.qkv).iter().zip(&inputs.weights) {
            let x = inputs.norm_and_rotate(part, weights, Kind::Double);
            let mean = wide(&x).square().mean_dim(-1_i64, false, Kind::Double);
            assert!((mean - 1.0).abs().max().double_value(&[]) < 1e-6);
        }
    }
}
