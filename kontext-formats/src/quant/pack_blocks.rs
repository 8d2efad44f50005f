//! Packing of single blocks: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Source: ggml-org/llama.cpp `gguf-py/gguf/quants.py`, `quantize_blocks`, which follows
//! `ggml/src/ggml-quants.c`, `quantize_row_q*_ref`.

use half::f16;

use super::legacy::{BLOCK, HALF};

/// Packs Q4_0: `d` is the value of largest magnitude over -8, so this value is exact.
#[inline(always)]
pub(super) fn q4_0(values: &[f32; BLOCK], out: &mut [u8; 18]) {
    let d = furthest(values) / -8.0;
    let q = levels(values, 0.0, inverse(d), 8.5, 15);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..].copy_from_slice(&halves(&q));
}

/// Packs Q4_1: the range is 15 steps of `d` from `m` on.
#[inline(always)]
pub(super) fn q4_1(values: &[f32; BLOCK], out: &mut [u8; 20]) {
    let (min, max) = range(values);
    let d = (max - min) / 15.0;
    let q = levels(values, min, inverse(d), 0.5, 15);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
    out[4..].copy_from_slice(&halves(&q));
}

/// Packs Q5_0: `d` is the value of largest magnitude over -16.
#[inline(always)]
pub(super) fn q5_0(values: &[f32; BLOCK], out: &mut [u8; 22]) {
    let d = furthest(values) / -16.0;
    let q = levels(values, 0.0, inverse(d), 16.5, 31);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..6].copy_from_slice(&fifth_bits(&q));
    out[6..].copy_from_slice(&halves(&q));
}

/// Packs Q5_1: the range is 31 steps of `d` from `m` on.
#[inline(always)]
pub(super) fn q5_1(values: &[f32; BLOCK], out: &mut [u8; 24]) {
    let (min, max) = range(values);
    let d = (max - min) / 31.0;
    let q = levels(values, min, inverse(d), 0.5, 31);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
    out[4..8].copy_from_slice(&fifth_bits(&q));
    out[8..].copy_from_slice(&halves(&q));
}

/// Packs Q8_0: `d` is the largest magnitude over 127; halves round away from zero.
#[inline(always)]
pub(super) fn q8_0(values: &[f32; BLOCK], out: &mut [u8; 34]) {
    let d = magnitude(values) / 127.0;
    let steps = inverse(d);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (out, value) in out[2..].iter_mut().zip(values) {
        *out = away(value * steps) as u8;
    }
}

/// Returns the largest magnitude. Compares as integers, whose maximum the compiler may compute in any order.
#[inline(always)]
pub(super) fn magnitude(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |most, value| value.abs().to_bits().max(most)))
}

/// Returns the first value of largest magnitude.
#[inline(always)]
fn furthest(values: &[f32; BLOCK]) -> f32 {
    let most = magnitude(values);
    values
        .iter()
        .copied()
        .find(|value| value.abs() == most)
        .unwrap_or(f32::NAN)
}

/// Returns the smallest and the largest value.
#[inline(always)]
fn range(values: &[f32; BLOCK]) -> (f32, f32) {
    const LANES: usize = 8;
    let (mut min, mut max) = ([values[0]; LANES], [values[0]; LANES]);
    for values in values.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            min[i] = if values[i] < min[i] { values[i] } else { min[i] };
            max[i] = if values[i] > max[i] { values[i] } else { max[i] };
        }
    }
    (
        min.into_iter().fold(min[0], f32::min),
        max.into_iter().fold(max[0], f32::max),
    )
}

#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Rounds to the nearest integer, halves away from zero, as `f32::round` does, which would be a call for each
/// element.
#[inline(always)]
fn away(value: f32) -> i32 {
    /// The largest f32 below 0.5: with 0.5 itself, 0.49999997 would go to 1.
    const HALF: f32 = 0.5_f32.next_down();
    (value + HALF.copysign(value)) as i32
}

#[inline(always)]
fn levels(values: &[f32; BLOCK], zero: f32, steps: f32, offset: f32, most: i32) -> [u8; BLOCK] {
    values.map(|value| (((value - zero) * steps + offset) as i32).clamp(0, most) as u8)
}

/// Packs the low four bits of 32 levels: those of the first 16 into the low half of each byte.
#[inline(always)]
fn halves(q: &[u8; BLOCK]) -> [u8; HALF] {
    std::array::from_fn(|i| q[i] & 15 | q[i + HALF] << 4)
}

#[inline(always)]
fn fifth_bits(q: &[u8; BLOCK]) -> [u8; 4] {
    q.iter()
        .enumerate()
        .fold(0_u32, |bits, (i, &q)| bits | u32::from(q >> 4) << i)
        .to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_largest_magnitude_comes_back_exactly_from_q4_0() {
        let mut values = [0.25; BLOCK];
        values[17] = -2.0;
        let (mut packed, mut out) = ([0; 18], [0.0; BLOCK]);
        q4_0(&values, &mut packed);
        super::super::legacy::q4_0(&packed, &mut out);
        assert_eq!((out[17], out[0]), (-2.0, 0.25));
    }

    #[test]
    fn halves_and_their_neighbours_are_rounded_as_by_the_standard_library() {
        for half in 0..256 {
            let half = half as f32 / 2.0;
            for value in [
                half,
                half.next_up(),
                half.next_down(),
                -half,
                -half.next_up(),
                -half.next_down(),
            ] {
                assert_eq!(away(value), value.round() as i32, "{value}");
            }
        }
    }

    #[test]
    fn a_block_of_zeros_is_packed_as_zeros() {
        let (mut packed, mut out) = ([1; 34], [1.0; BLOCK]);
        q8_0(&[0.0; BLOCK], &mut packed);
        super::super::legacy::q8_0(&packed, &mut out);
        assert_eq!(out, [0.0; BLOCK]);
    }
}
