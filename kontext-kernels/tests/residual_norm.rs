//! The kernels of residual and layer norm against the same operations in f64.
#![allow(clippy::unwrap_used)]

mod common;

use common::{BF16, FLUX, ODD, SMALL, assert_quantised, assert_rounded, in_all_orders, random, shape, wide};
use kontext_core::{Kind, Tensor};
use kontext_kernels::{Branch, Kernels, NormModulation};

const EPS: f64 = 1e-6;

/// Inputs of a call: x and y [B, T, D]; gate, scale and shift of text and image, [B or 1, 1, D].
struct Inputs {
    x: Tensor,
    y: Tensor,
    vectors: [[Tensor; 3]; 2],
    text: i64,
}

impl Inputs {
    fn new(width: i64, [batch, text, image]: [i64; 3], vectors: i64, mean: f64) -> Self {
        let rows = [batch, text + image, width];
        let vector = |seed| random(&[vectors, 1, width], seed, 0.5, 0.0);
        Self {
            x: random(&rows, 1, 3.0, mean),
            y: random(&rows, 2, 1.0, 0.0),
            vectors: [[vector(3), vector(4), vector(5)], [vector(6), vector(7), vector(8)]],
            text,
        }
    }

    /// Runs the kernel; returns x after it, and the result.
    fn run<R>(
        &self,
        x: Tensor,
        with_branch: bool,
        kernel: impl Fn(&Tensor, Option<&Branch<'_>>, [&NormModulation<'_>; 2]) -> R,
    ) -> (Tensor, R) {
        let [text, image] = &self.vectors;
        let branch = Branch {
            y: &self.y,
            text_gate: &text[0],
            image_gate: &image[0],
        };
        let [text_norm, image_norm] = [text, image].map(|vectors| NormModulation {
            scale: &vectors[1],
            shift: &vectors[2],
        });
        let result = kernel(&x, with_branch.then_some(&branch), [&text_norm, &image_norm]);
        (x, result)
    }

    fn bf16(&self, kernels: &Kernels, x: Tensor, with_branch: bool) -> [Tensor; 2] {
        let (x, normed) = self.run(x, with_branch, |x, branch, [text, image]| {
            kernels.residual_norm(x, branch, text, image, self.text, EPS).unwrap()
        });
        [x, normed]
    }

    /// One of gate, scale and shift for each row, in f64.
    fn rows(&self, index: usize) -> Tensor {
        let [batch, rows, width] = <[i64; 3]>::try_from(self.x.size()).unwrap();
        let of = |stream: usize, count| wide(&self.vectors[stream][index]).expand([batch, count, width], true);
        Tensor::cat(&[of(0, self.text), of(1, rows - self.text)], 1)
    }

    /// The sum, rounded to bf16, and the norm of it in f64.
    fn reference(&self, with_branch: bool) -> (Tensor, Tensor) {
        let sum = match with_branch {
            true => (wide(&self.x) + self.rows(0) * wide(&self.y)).to_kind(Kind::BFloat16),
            false => self.x.shallow_clone(),
        };
        let width = *sum.size().last().unwrap();
        let normed = wide(&sum).layer_norm(width, None::<&Tensor>, None::<&Tensor>, EPS, false);
        let modulated = normed * (self.rows(1) + 1.0) + self.rows(2);
        (sum, modulated)
    }
}

fn compare(sizes: [i64; 3], rows: [i64; 3], vectors: i64, mean: f64) {
    let inputs = Inputs::new(shape(sizes).width(), rows, vectors, mean);
    for with_branch in [true, false] {
        let (sum, expected) = inputs.reference(with_branch);
        let [x, normed] = in_all_orders(sizes, |kernels| inputs.bf16(kernels, inputs.x.copy(), with_branch));
        // gate * y + x is one fused operation in f32; f64 rounds to other bits only if it rounds twice.
        let differ = x.ne_tensor(&sum).sum(Kind::Int64).int64_value(&[]);
        assert!(
            differ * 10_000 <= x.numel() as i64,
            "{differ} of the sums have other bits"
        );
        assert_rounded(&x, &wide(&sum), BF16);
        assert_rounded(&normed, &expected, BF16);

        let [x, codes, factors] = in_all_orders(sizes, |kernels| {
            let (x, (codes, factors)) = inputs.run(inputs.x.copy(), with_branch, |x, branch, [text, image]| {
                kernels
                    .residual_norm_fp8(x, branch, text, image, inputs.text, EPS)
                    .unwrap()
            });
            [x, codes, factors]
        });
        assert_rounded(&x, &wide(&sum), BF16);
        assert_quantised(&codes, &factors, &expected);
    }
}

#[test]
fn flux_in_both_streams() {
    compare(FLUX, [1, 3, 5], 1, 1.0);
}

#[test]
fn rows_that_end_within_a_warp() {
    compare(SMALL, [1, 4, 12], 1, 1.0);
    compare(ODD, [1, 4, 12], 1, 1.0);
}

#[test]
fn batches_have_one_vector_or_their_own() {
    compare(SMALL, [3, 2, 6], 1, 0.0);
    compare(SMALL, [3, 2, 6], 3, 0.0);
}

#[test]
fn one_stream_has_all_rows() {
    compare(SMALL, [2, 0, 6], 2, 0.0);
    compare(SMALL, [2, 6, 0], 2, 0.0);
}

/// Thirty deviations from zero: a variance of squares would lose three digits.
#[test]
fn values_far_from_zero_keep_their_variance() {
    compare(ODD, [1, 2, 4], 1, 90.0);
}

#[test]
fn rows_of_a_joint_buffer_are_taken_without_a_copy() {
    let inputs = Inputs::new(192, [2, 3, 5], 1, 0.0);
    let (sum, expected) = inputs.reference(true);
    let [buffer, normed] = in_all_orders(SMALL, |kernels| {
        let buffer = Tensor::zeros([2, 12, 400], (Kind::BFloat16, inputs.x.device()));
        let mut rows = buffer.narrow(1, 4, 8).narrow(2, 8, 192);
        rows.copy_(&inputs.x);
        let [_, normed] = inputs.bf16(kernels, rows, true);
        [buffer, normed]
    });
    assert_rounded(&buffer.narrow(1, 4, 8).narrow(2, 8, 192), &wide(&sum), BF16);
    assert_rounded(&normed, &expected, BF16);
    // Nothing else of the buffer was written.
    let written = buffer.ne(0.0).sum(Kind::Int64).int64_value(&[]);
    assert!(written <= inputs.x.numel() as i64, "{written}");
}
