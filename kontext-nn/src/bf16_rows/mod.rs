//! Norms and rotations of bf16 rows on a CPU, each in one pass over memory.
//!
//! libtorch's operations make a pass and a new tensor for each of their steps, most of them in f32; on a CPU
//! with bf16 units that took a third of the time of a block's matrix products. Values and roundings are those
//! of the operations.

mod view;

use kontext_core::{Device, Kind, Result, Tensor, threads};
use rayon::prelude::*;

pub(crate) use view::View;

/// Elements of a thread's piece: some 30 microseconds of work.
const PIECE: usize = 1 << 15;
/// Lanes that are summed apart, so that a loop over them is compiled to wide registers.
const LANES: usize = 16;

/// Returns `true` for a bf16 tensor on a CPU whose rows these loops may read: its last dimension is dense, of
/// a multiple of 16 elements, and no gradient is wanted.
pub(crate) fn suits(x: &Tensor) -> bool {
    let (size, stride) = (x.size(), x.stride());
    let width = size.last().copied().unwrap_or_default();
    let dense = stride.last() == Some(&1) && width > 0 && width % LANES as i64 == 0;
    dense
        && x.numel() > 0
        && (2..=4).contains(&size.len())
        && x.kind() == Kind::BFloat16
        && x.device() == Device::Cpu
        && !x.requires_grad()
}

/// Computes `x / sqrt(mean(x²) + eps)`, rounded to bf16, times the weight, rounded again: [.., width] to the
/// same shape. `x` suits, and the weight `[width]` is on its device.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let weight = weight.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?;
    let weight = Vec::<f32>::try_from(&weight)?;
    let eps = eps as f32;
    by_rows(x, |_, row, out| norm_row(row, &weight, eps, out))
}

/// Weights and rotations of heads.
pub(crate) struct Turn {
    /// [N, D], a weight for each kind of heads (queries, keys), or [L, N, D].
    pub(crate) weight: Vec<f32>,
    /// `true` if the tokens have different weights.
    pub(crate) by_token: bool,
    /// N.
    pub(crate) kinds: usize,
    /// Heads of a kind.
    pub(crate) heads: usize,
    /// Cosine and sine of each pair of features, [L, D].
    pub(crate) pairs: Vec<f32>,
    pub(crate) eps: f32,
}

/// Norms by the root mean square, multiplies by the weights and rotates adjacent pairs of features, in f32 with one
/// rounding: [B, L, N * H, D] to the same shape. `x` suits.
pub(crate) fn norm_and_rotate(x: &Tensor, turn: &Turn) -> Result<Tensor> {
    let width = x.size().last().map_or(0, |width| *width as usize);
    by_rows(x, |[_, token, head], row, out| {
        let first = if turn.by_token { token * turn.kinds } else { 0 };
        let weight = &turn.weight[(first + head / turn.heads) * width..][..width];
        turn_row(row, weight, &turn.pairs[token * width..][..width], turn.eps, out);
    })
}

/// Makes a dense tensor of the same shape, each of its rows by `make` from its indices and the row of `x`.
fn by_rows(x: &Tensor, make: impl Fn([usize; 3], &[u16], &mut [u16]) + Sync) -> Result<Tensor> {
    let mut out = Tensor::f_empty(x.size(), (Kind::BFloat16, Device::Cpu))?;
    let view = View::new(x);
    let width = view.width();
    let rows_of = |start: usize, out: &mut [u16]| {
        for (index, out) in out.chunks_exact_mut(width).enumerate() {
            let at = view.indices(start + index);
            make(at, view.row(at), out);
        }
    };
    let values = view::values_mut(&mut out);
    let rows = PIECE.div_ceil(width);
    // A run of one thread starts no others.
    if values.len() <= PIECE || tch::get_num_threads() <= 1 {
        rows_of(0, values);
    } else {
        threads::start()?;
        let pieces = values.par_chunks_mut(rows * width).enumerate();
        pieces.for_each(|(piece, out)| rows_of(piece * rows, out));
    }
    Ok(out)
}

fn norm_row(row: &[u16], weight: &[f32], eps: f32, out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn wide(row: &[u16], weight: &[f32], eps: f32, out: &mut [u16]) {
            norm_row_of(row, weight, eps, out);
        }
        #[allow(unsafe_code)]
        // SAFETY: the processor has the feature the function was compiled for.
        return unsafe { wide(row, weight, eps, out) };
    }
    norm_row_of(row, weight, eps, out);
}

/// Returns `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn norm_factor(row: &[u16], eps: f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    for chunk in row.as_chunks::<LANES>().0 {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += widened(*value) * widened(*value);
        }
    }
    1.0 / (sums.iter().sum::<f32>() / row.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn norm_row_of(row: &[u16], weight: &[f32], eps: f32, out: &mut [u16]) {
    let factor = norm_factor(row, eps);
    let (chunks, _) = row.as_chunks::<LANES>();
    let weights = weight.as_chunks::<LANES>().0.iter();
    for ((chunk, weights), out) in chunks.iter().zip(weights).zip(out.as_chunks_mut::<LANES>().0) {
        for ((value, weight), out) in chunk.iter().zip(weights).zip(out) {
            *out = narrowed(widened(narrowed(widened(*value) * factor)) * weight);
        }
    }
}

fn turn_row(row: &[u16], weight: &[f32], pairs: &[f32], eps: f32, out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn wide(row: &[u16], weight: &[f32], pairs: &[f32], eps: f32, out: &mut [u16]) {
            turn_row_of(row, weight, pairs, eps, out);
        }
        #[allow(unsafe_code)]
        // SAFETY: as in `norm_row`.
        return unsafe { wide(row, weight, pairs, eps, out) };
    }
    turn_row_of(row, weight, pairs, eps, out);
}

#[inline(always)]
fn turn_row_of(row: &[u16], weight: &[f32], pairs: &[f32], eps: f32, out: &mut [u16]) {
    let factor = norm_factor(row, eps);
    let values = row.as_chunks::<2>().0.iter().zip(weight.as_chunks::<2>().0);
    let turned = values.zip(pairs.as_chunks::<2>().0);
    for (((&[a, b], &[for_a, for_b]), &[cos, sin]), out) in turned.zip(out.as_chunks_mut::<2>().0) {
        let (a, b) = (widened(a) * factor * for_a, widened(b) * factor * for_b);
        *out = [narrowed(a * cos - b * sin), narrowed(a * sin + b * cos)];
    }
}

#[inline(always)]
fn widened(value: u16) -> f32 {
    f32::from_bits(u32::from(value) << 16)
}

/// Rounds to nearest, ties to even, without a branch; a NaN stays one.
#[inline(always)]
fn narrowed(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if value.is_nan() { 0x7fc0 } else { nearest }
}

#[cfg(test)]
mod tests {
    use kontext_core::noise;

    use super::*;

    fn draw(shape: &[i64], seed: u64) -> Tensor {
        let x = noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
        x.to_kind(Kind::BFloat16)
    }

    /// Tensors of several ranks and layouts, small ones and one for several threads.
    fn inputs() -> Vec<Tensor> {
        let projected = draw(&[2, 7, 3, 4, 32], 1);
        vec![
            draw(&[5, 48], 2),
            draw(&[2, 3, 64], 3),
            projected.select(2, 1),
            projected.select(2, 2).transpose(1, 2),
            draw(&[1, 300, 4, 64], 4).narrow(1, 20, 250),
        ]
    }

    #[test]
    fn norms_are_those_of_libtorchs_operations_within_one_rounding() {
        for x in inputs() {
            assert!(suits(&x));
            let width = x.size().last().copied().unwrap();
            let weight = draw(&[width], 9).to_kind(Kind::Float);
            let wide = x.to_kind(Kind::Float);
            let scale = (wide.square().mean_dim(-1_i64, true, Kind::Float) + 1e-6).rsqrt();
            let expected = (wide * scale).to_kind(Kind::BFloat16) * weight.to_kind(Kind::BFloat16);
            let got = rms_norm(&x, &weight, 1e-6).unwrap();
            assert_eq!((got.size(), got.kind()), (expected.size(), Kind::BFloat16));
            let (got, expected) = (got.to_kind(Kind::Float), expected.to_kind(Kind::Float));
            // A mean that differs in its last bit moves a tie; few values are at one.
            assert!(got.allclose(&expected, 2.0_f64.powi(-6), 0.0, false));
            let moved = got
                .ne_tensor(&expected)
                .to_kind(Kind::Float)
                .mean(Kind::Float)
                .double_value(&[]);
            assert!(moved < 1e-2, "{moved}");
        }
    }

    #[test]
    fn norms_and_rotations_are_those_of_libtorchs_operations_in_f32_rounded_once() {
        let float = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
        let (length, kinds, heads, width) = (300, 2, 3, 64);
        // Queries and keys in a buffer with values, as a projection writes them.
        let x = draw(&[2, length, 3, heads, width], 1).narrow(2, 0, kinds);
        let angles = float(&[length, width / 2], 5);
        let pairs = Tensor::stack(&[angles.cos(), angles.sin()], -1);
        for by_token in [false, true] {
            let weight = float(&[length, kinds, 1, width], 7);
            let weight = if by_token { weight } else { weight.select(0, 0) };
            let got = crate::ops::norm_and_rotate(&x, &weight, &pairs.flatten(-2, -1), 1e-6)
                .unwrap()
                .unwrap();
            assert_eq!((got.size(), got.kind()), (x.size(), Kind::BFloat16));
            let wide = x.to_kind(Kind::Float);
            let scale = (wide.square().mean_dim(-1_i64, true, Kind::Float) + 1e-6).rsqrt();
            let normed = (wide * scale * &weight).unflatten(-1, [-1_i64, 2]).contiguous();
            let table = pairs.contiguous().view_as_complex().unsqueeze(1).unsqueeze(1);
            let expected = (normed.view_as_complex() * &table).view_as_real().flatten(-2, -1);
            // Half a unit of 8 bits; a difference of products may be small.
            let got = got.to_kind(Kind::Float);
            assert!(got.allclose(&expected, 2.0_f64.powi(-8), 1e-5, false), "{by_token}");
        }
        let trained = float(&[kinds, 1, width], 7).set_requires_grad(true);
        let none = crate::ops::norm_and_rotate(&x, &trained, &pairs.flatten(-2, -1), 1e-6).unwrap();
        assert!(none.is_none());
    }

    #[test]
    fn rows_that_do_not_suit_are_left_to_libtorch() {
        let x = draw(&[2, 3, 64], 1);
        assert!(suits(&x) && !suits(&x.to_kind(Kind::Float)) && !suits(&draw(&[2, 18], 1)));
        assert!(!suits(&x.transpose(0, 2)) && !suits(&draw(&[64], 1)) && !suits(&x.set_requires_grad(true)));
    }

    #[test]
    fn a_nan_stays_one_and_spreads_over_its_row_only() {
        let x = draw(&[2, 32], 1);
        let _ = x.get(0).narrow(0, 3, 1).fill_(f64::NAN);
        let out = rms_norm(&x, &Tensor::ones([32], (Kind::Float, Device::Cpu)), 1e-6).unwrap();
        assert!(
            bool::try_from(out.get(0).isnan().all()).unwrap() && !bool::try_from(out.get(1).isnan().any()).unwrap()
        );
    }
}
