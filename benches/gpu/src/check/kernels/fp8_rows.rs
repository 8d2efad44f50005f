//! Attention and GELU of the MLP as one quantised row, and the attention without it.

use kontext::Tensor;
use kontext_kernels::Kernels;

use super::inputs::{Rows, random, wide};
use super::work::{Work, bytes_of, quantise, to_e4m3, values};
use crate::row::Outcome;

pub(super) fn check(kernels: &Kernels, rows: Rows, outcome: &mut Outcome) -> anyhow::Result<()> {
    if !kernels.has_fp8() {
        outcome.note("the card has no fp8");
        return Ok(());
    }
    let (on, shape) = (kernels.device(), *kernels.shape());
    // As in a single block: the MLP's rows follow those of q, k and v.
    let joint = random(on, &[1, rows.all(), 3 * shape.width() + shape.mlp_width()], 1, 1.5, 0.0)?;
    let mlp = joint.narrow(2, 3 * shape.width(), shape.mlp_width());
    let attention = random(on, &[1, rows.all(), shape.width()], 2, 1.0, 0.0)?;
    let row = |attention: &Tensor, mlp: &Tensor| Tensor::cat(&[attention.shallow_clone(), mlp.gelu("tanh")], -1);
    let quantised = || kernels.gelu_concat_fp8(Some(&attention), &mlp);
    let work = Work {
        exact: vec![row(&wide(&attention), &wide(&mlp))],
        results: &|| Ok(vec![values(&quantised()?)]),
        plain: &|| Ok(vec![values(&quantise(&row(&attention, &mlp)))]),
        launch: &|| Ok(quantised().map(drop)?),
        bytes: 3 * bytes_of([&attention, &mlp]) / 2 + 4 * rows.all(),
        round: to_e4m3,
    };
    work.measure(on, outcome)
}

pub(super) fn check_attention(kernels: &Kernels, rows: Rows, outcome: &mut Outcome) -> anyhow::Result<()> {
    if !kernels.has_fp8() {
        outcome.note("the card has no fp8");
        return Ok(());
    }
    let attention = random(kernels.device(), &[1, rows.all(), kernels.shape().width()], 2, 1.0, 0.0)?;
    let quantised = || kernels.attention_fp8(&attention);
    let work = Work {
        exact: vec![wide(&attention)],
        results: &|| Ok(vec![values(&quantised()?)]),
        plain: &|| Ok(vec![values(&quantise(&attention))]),
        launch: &|| Ok(quantised().map(drop)?),
        bytes: 3 * bytes_of([&attention]) / 2 + 4 * rows.all(),
        round: to_e4m3,
    };
    work.measure(kernels.device(), outcome)
}
