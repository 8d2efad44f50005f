//! Packing of one block: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Source: ggml-org/llama.cpp `gguf-py/gguf/quants.py`, `quantize_blocks`, which follows `ggml/src/ggml-quants.c`,
//! `quantize_row_q*_ref`.

use half::f16;

use super::legacy::{BLOCK, HALF};

/// `d` is the value of largest magnitude over -8, so that this value is met exactly.
#[inline(always)]
pub(super) fn q4_0(values: &[f32; BLOCK], out: &mut [u8; 18]) {
    let d = furthest(values) / -8.0;
    let q = levels(values, 0.0, inverse(d), 8.5, 15);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..].copy_from_slice(&halves(&q));
}

/// The range is 15 steps of `d` from `m` on.
#[inline(always)]
pub(super) fn q4_1(values: &[f32; BLOCK], out: &mut [u8; 20]) {
    let (min, max) = range(values);
    let d = (max - min) / 15.0;
    let q = levels(values, min, inverse(d), 0.5, 15);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
    out[4..].copy_from_slice(&halves(&q));
}

/// `d` is the value of largest magnitude over -16.
#[inline(always)]
pub(super) fn q5_0(values: &[f32; BLOCK], out: &mut [u8; 22]) {
    let d = furthest(values) / -16.0;
    let q = levels(values, 0.0, inverse(d), 16.5, 31);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..6].copy_from_slice(&fifth_bits(&q));
    out[6..].copy_from_slice(&halves(&q));
}

/// The range is 31 steps of `d` from `m` on.
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

/// `d` is the largest magnitude over 127; halves are rounded away from zero.
#[inline(always)]
pub(super) fn q8_0(values: &[f32; BLOCK], out: &mut [u8; 34]) {
    let d = furthest(values).abs() / 127.0;
    let steps = inverse(d);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (out, value) in out[2..].iter_mut().zip(values) {
        *out = (value * steps).round() as i8 as u8;
    }
}

/// The first value of largest magnitude.
#[inline(always)]
fn furthest(values: &[f32; BLOCK]) -> f32 {
    values.iter().fold(values[0], |most, &value| if value.abs() > most.abs() { value } else { most })
}

/// The least and the largest value.
#[inline(always)]
fn range(values: &[f32; BLOCK]) -> (f32, f32) {
    values.iter().fold((values[0], values[0]), |(min, max), &value| {
        (if value < min { value } else { min }, if value > max { value } else { max })
    })
}

#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

#[inline(always)]
fn levels(values: &[f32; BLOCK], zero: f32, steps: f32, offset: f32, most: u8) -> [u8; BLOCK] {
    values.map(|value| (((value - zero) * steps + offset) as u8).min(most))
}

/// The low four bits of 32 levels: of the first 16 in the low half of each byte.
#[inline(always)]
fn halves(q: &[u8; BLOCK]) -> [u8; HALF] {
    std::array::from_fn(|i| q[i] & 15 | q[i + HALF] << 4)
}

#[inline(always)]
fn fifth_bits(q: &[u8; BLOCK]) -> [u8; 4] {
    q.iter().enumerate().fold(0_u32, |bits, (i, &q)| bits | u32::from(q >> 4) << i).to_le_bytes()
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
    fn a_block_of_zeros_is_packed_as_zeros() {
        let (mut packed, mut out) = ([1; 34], [1.0; BLOCK]);
        q8_0(&[0.0; BLOCK], &mut packed);
        super::super::legacy::q8_0(&packed, &mut out);
        assert_eq!(out, [0.0; BLOCK]);
    }
}
