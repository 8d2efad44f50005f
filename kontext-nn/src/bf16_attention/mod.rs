//! Attention in bf16 on CPUs with AVX-512's bf16 units.
//!
//! libtorch 2.11 computes attention in bf16 no faster than in f32 there, while its matrix products are
//! several times as fast. This is the same algorithm (FlashAttention: scores of a block of keys at a time,
//! with a running maximum and sum) with the same roundings: scores, softmax and sums in f32, the weights
//! rounded to bf16 for their product with the values. On a core of a Zen 5 it does 390 GFLOP/s (by CPU time), where
//! libtorch does 190 on two. AMX, where libtorch is fast, is left to it.
//!
//! Source: Dao et al. 2022, FlashAttention, algorithm 1.

mod block;
mod pack;
mod tile;

use std::sync::OnceLock;

use kontext_core::{Device, Kind, Result, Tensor, threads};
use kontext_device::cpu;
use rayon::prelude::*;

use crate::bf16_rows::View;
use block::{Keys, QUERIES, Scratch};

/// Multiple of the sizes of heads.
const HEAD: i64 = 64;
/// Fewest keys; with fewer, packing them takes most of the time.
const FEWEST: i64 = 64;

/// Computes `softmax(q k^T * scale) v` if this CPU and these tensors suit; otherwise returns `None`.
///
/// # Shapes
/// `q` [B, H, L, D], `k` and `v` [B, H, S, D], with the last dimension dense; returns [B, L, H * D] in bf16.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, scale: Option<f64>) -> Result<Option<Tensor>> {
    // The running maximum is one of scores before the scale.
    if scale.is_some_and(|scale| scale < 0.0) || !suits(q, k, v) || !has_units() {
        return Ok(None);
    }
    let ([batch, heads, length, width], [.., keys, _]) = (sides(q), sides(k));
    let out = Tensor::f_empty([batch, length, heads * width], (Kind::BFloat16, Device::Cpu))?;
    if out.numel() == 0 {
        return Ok(Some(out));
    }
    let (views, width) = ([View::new(q), View::new(k), View::new(v)], width as usize);
    let (heads, length, keys) = (heads as usize, length as usize, keys as usize);
    let scale = scale.unwrap_or((width as f64).powf(-0.5)) as f32;
    let [q, k, v] = &views;

    let pairs = batch as usize * heads;
    // A run of one thread starts no others.
    let parallel = tch::get_num_threads() > 1;
    if parallel {
        threads::start()?;
    }
    let pack = |index: usize| Keys::pack(k, v, [index / heads, index % heads], keys, width);
    let packed: Vec<Keys> = if parallel {
        (0..pairs).into_par_iter().map(pack).collect::<Result<_>>()?
    } else {
        (0..pairs).map(pack).collect::<Result<_>>()?
    };
    let rows = Rows::new(&out, length, heads, width);
    let blocks = length.div_ceil(QUERIES);
    let run = |scratch: &mut Scratch, job: usize| {
        let (pair, start) = (job / blocks, job % blocks * QUERIES);
        let count = QUERIES.min(length - start);
        let at = [pair / heads, pair % heads];
        scratch.attend(q, at, start..start + count, &packed[pair], scale);
        rows.write(at, start, count, scratch);
    };
    let scratch = || Scratch::new(width);
    if parallel {
        (0..pairs * blocks).into_par_iter().for_each_init(scratch, run);
    } else {
        let mut scratch = scratch();
        (0..pairs * blocks).for_each(|job| run(&mut scratch, job));
    }
    Ok(Some(out))
}

fn suits(q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
    let one = |x: &Tensor| {
        let dense = x.stride().last() == Some(&1) && x.size().len() == 4;
        dense && x.kind() == Kind::BFloat16 && x.device() == Device::Cpu && !x.requires_grad()
    };
    if ![q, k, v].into_iter().all(one) {
        return false;
    }
    let ([batch, heads, _, width], [.., keys, _]) = (sides(q), sides(k));
    let same = sides(k) == sides(v) && sides(k) == [batch, heads, keys, width];
    same && width > 0 && width % HEAD == 0 && keys >= FEWEST
}

fn sides(x: &Tensor) -> [i64; 4] {
    x.size().try_into().unwrap_or_default()
}

/// Returns `true` if this CPU computes the attention of bf16 heads of a width here.
pub(crate) fn serves(width: i64) -> bool {
    width > 0 && width % HEAD == 0 && has_units()
}

/// Returns `true` if the CPU multiplies by AVX-512's units and not by AMX's.
fn has_units() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| tile::is_supported() && !cpu::features().contains(&"AMX bf16"))
}

/// The output [B, L, H, D], of which each job writes other rows.
struct Rows {
    data: *mut u16,
    length: usize,
    heads: usize,
    width: usize,
}

#[allow(unsafe_code)]
// SAFETY: the jobs write distinct rows; see `Rows::write`.
unsafe impl Sync for Rows {}

impl Rows {
    fn new(out: &Tensor, length: usize, heads: usize, width: usize) -> Self {
        Self {
            data: out.data_ptr().cast(),
            length,
            heads,
            width,
        }
    }

    #[allow(unsafe_code)]
    fn write(&self, [item, head]: [usize; 2], start: usize, count: usize, scratch: &Scratch) {
        for row in 0..count {
            let at = ((item * self.length + start + row) * self.heads + head) * self.width;
            // SAFETY: `out` was allocated for [B, L, H, D] bf16 values and is not read before all jobs are
            // done; each (item, head, block of queries) is one job's, so no two slices overlap.
            let out = unsafe { std::slice::from_raw_parts_mut(self.data.add(at), self.width) };
            scratch.result(row, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::{check, noise};

    use super::*;

    fn draw(shape: &[i64], seed: u64) -> Tensor {
        let x = noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
        x.to_kind(Kind::BFloat16)
    }

    /// Attention in f64 on the same bf16 values: [B, L, H * D].
    fn exact(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Tensor {
        let wide = |x: &Tensor| x.to_kind(Kind::Double);
        let scores = wide(q).matmul(&wide(k).transpose(-2, -1)) * scale;
        let out = scores.softmax(-1, Kind::Double).matmul(&wide(v));
        out.transpose(1, 2).flatten(-2, -1)
    }

    /// The error of libtorch's attention in bf16.
    fn of_libtorch(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, expected: &Tensor) -> f64 {
        let out = Tensor::scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, false, scale, false);
        check::relative_l2(&out.transpose(1, 2).flatten(-2, -1), expected).unwrap()
    }

    #[test]
    fn results_are_at_least_as_near_to_f64_as_those_of_libtorch_at_any_length_and_layout() {
        if !has_units() {
            eprintln!("skipped: this CPU has no AVX-512 units for bf16");
            return;
        }
        let mut seed = 0;
        for (length, keys, width, factor) in [
            (1, 64, 64, 1.0),
            (7, 65, 64, 4.0),
            (96, 256, 128, 1.0),
            (97, 300, 128, 8.0),
            (200, 511, 128, 1.0),
            (5, 1000, 192, 3.0),
        ] {
            seed += 3;
            // Tokens by heads, as a projection writes them, and heads by tokens.
            let tokens = |length, seed| draw(&[2, length, 3, width], seed).transpose(1, 2);
            let heads = |length, seed| draw(&[2, 3, length, width], seed);
            for draw in [&tokens as &dyn Fn(i64, u64) -> Tensor, &heads] {
                let (q, k, v) = (draw(length, seed), draw(keys, seed + 1), draw(keys, seed + 2));
                let scale = factor * (width as f64).powf(-0.5);
                let expected = exact(&q, &k, &v, scale);
                let ours = attend(&q, &k, &v, Some(scale)).unwrap().unwrap();
                assert_eq!((ours.size(), ours.kind()), (expected.size(), Kind::BFloat16));
                let error = check::relative_l2(&ours, &expected).unwrap();
                let theirs = of_libtorch(&q, &k, &v, scale, &expected);
                // Both round the weights and the result; 5 % for the luck of the roundings.
                assert!(error <= 1.05 * theirs, "{length} {keys} {width}: {error:e} {theirs:e}");
                assert!(error > 1e-4 && error < 5e-3, "{error:e}");
            }
        }
    }

    #[test]
    fn one_thread_and_several_give_the_same_bits() {
        let (q, k, v) = (
            draw(&[1, 4, 130, 64], 1),
            draw(&[1, 4, 90, 64], 2),
            draw(&[1, 4, 90, 64], 3),
        );
        let Some(several) = attend(&q, &k, &v, None).unwrap() else {
            eprintln!("skipped: this CPU has no AVX-512 units for bf16");
            return;
        };
        let before = tch::get_num_threads();
        tch::set_num_threads(1);
        let one = attend(&q, &k, &v, None).unwrap().unwrap();
        tch::set_num_threads(before);
        assert!(one.equal(&several));
    }

    #[test]
    fn a_score_far_above_the_others_takes_their_place_in_any_block() {
        if !has_units() {
            eprintln!("skipped: this CPU has no AVX-512 units for bf16");
            return;
        }
        let (q, v) = (draw(&[1, 1, 3, 64], 1), draw(&[1, 1, 700, 64], 2));
        for place in [0, 255, 256, 699] {
            let k = Tensor::zeros([1, 1, 700, 64], (Kind::BFloat16, Device::Cpu));
            // Scores of some 6,400 for a query along the key, in which bf16 is exact to 32.
            k.narrow(2, place, 1).copy_(&(q.narrow(2, 0, 1) * 100.0));
            let out = attend(&q.narrow(2, 0, 1), &k, &v, Some(1.0)).unwrap().unwrap();
            assert!(
                out.flatten(0, -1).equal(&v.narrow(2, place, 1).flatten(0, -1)),
                "{place}"
            );
        }
    }

    #[test]
    fn tensors_that_do_not_suit_are_left_to_libtorch() {
        let bf16 = |shape: &[i64]| draw(shape, 0);
        let (q, k) = (bf16(&[1, 2, 5, 64]), bf16(&[1, 2, 70, 64]));
        let suit = |q: &Tensor, k: &Tensor| suits(q, k, k);
        assert!(suit(&q, &k));
        assert!(!suit(&q.to_kind(Kind::Float), &k.to_kind(Kind::Float)));
        assert!(!suit(&bf16(&[1, 2, 5, 40]), &bf16(&[1, 2, 70, 40])));
        assert!(!suit(&q, &k.narrow(2, 0, 9)));
        assert!(!suit(&q.transpose(-1, -2).contiguous().transpose(-1, -2), &k));
        assert!(!suit(&q, &bf16(&[1, 1, 70, 64])));
        assert!(!suit(&q.set_requires_grad(true), &k));
    }
}
