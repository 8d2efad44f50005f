//! Loops over registers of AVX-512 with bf16 units.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _mm256_storeu_si256, _mm512_add_ps, _mm512_cvtneps_pbh,
    _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_loadu_ps, _mm512_max_ps,
    _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_roundscale_ps, _mm512_scalef_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::pack::{LANES, PANEL, Register};

/// Rows of a tile: with [`PANEL`] registers a row, all but a few of the CPU's 32 registers hold sums.
pub(super) const ROWS: usize = 6;

/// Returns `true` if the CPU has the instructions of this file.
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vl")
}

/// Sums of a tile's rows.
type Sums = [[f32; LANES]; PANEL];

/// Adds products to sums: `sums[row] = sums[row] * factors[row] + a[row] * panel`, for rows of pairs in `a`
/// that are `stride` apart, and for as many pairs as the panel has. There are as many rows as `sums` has;
/// rows of sums are `step` apart.
///
/// Only for a CPU for which [`is_supported`] is true.
#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
pub(super) fn multiply_add(
    a: &[u32],
    stride: usize,
    panel: &[Register],
    sums: &mut [Sums],
    step: usize,
    rows: usize,
    factors: Option<&[f32]>,
) {
    let mut row = 0;
    while row < rows {
        let (a, sums) = (&a[row * stride..], &mut sums[row * step..]);
        let factors = factors.map(|factors| &factors[row..]);
        match rows - row {
            1 => tile::<1>(a, stride, panel, sums, step, factors),
            2 => tile::<2>(a, stride, panel, sums, step, factors),
            3 => tile::<3>(a, stride, panel, sums, step, factors),
            4 => tile::<4>(a, stride, panel, sums, step, factors),
            5 => tile::<5>(a, stride, panel, sums, step, factors),
            _ => tile::<ROWS>(a, stride, panel, sums, step, factors),
        }
        row += ROWS;
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
fn tile<const N: usize>(
    a: &[u32],
    stride: usize,
    panel: &[Register],
    sums: &mut [Sums],
    step: usize,
    factors: Option<&[f32]>,
) {
    let pairs = panel.len() / PANEL;
    let mut total = [[_mm512_setzero_ps(); PANEL]; N];
    if let Some(factors) = factors {
        for row in 0..N {
            let factor = _mm512_set1_ps(factors[row]);
            for column in 0..PANEL {
                total[row][column] = _mm512_mul_ps(load(&sums[row * step][column]), factor);
            }
        }
    }
    let rows: [&[u32]; N] = std::array::from_fn(|row| &a[row * stride..][..pairs]);
    for (pair, registers) in panel.as_chunks::<PANEL>().0.iter().enumerate() {
        let b: [__m512bh; PANEL] = std::array::from_fn(|column| load_pairs(&registers[column]));
        for row in 0..N {
            let a = pairs_of(_mm512_set1_epi32(rows[row][pair].cast_signed()));
            for column in 0..PANEL {
                total[row][column] = _mm512_dpbf16_ps(total[row][column], a, b[column]);
            }
        }
    }
    for row in 0..N {
        for column in 0..PANEL {
            store(total[row][column], &mut sums[row * step][column]);
        }
    }
}

/// Replaces scores by the weights `2^(score * scale - maximum)`, rounded to bf16, for the first `count`
/// scores, and by zeros for the others; returns the new maximum and the sum of the weights before rounding.
///
/// Only for a CPU for which [`is_supported`] is true.
#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
pub(super) fn weights(
    scores: &[[f32; LANES]],
    count: usize,
    scale: f32,
    maximum: f32,
    out: &mut [[u32; LANES / 2]],
) -> (f32, f32) {
    let mut highest = _mm512_set1_ps(f32::NEG_INFINITY);
    for (index, scores) in scores.iter().enumerate() {
        highest = _mm512_max_ps(highest, load_first(scores, count.saturating_sub(index * LANES)));
    }
    let maximum = maximum.max(_mm512_reduce_max_ps(highest) * scale);
    let (scale, shift) = (_mm512_set1_ps(scale), _mm512_set1_ps(-maximum));
    let mut sum = _mm512_setzero_ps();
    for (index, (scores, out)) in scores.iter().zip(out).enumerate() {
        let scores = load_first(scores, count.saturating_sub(index * LANES));
        let weight = exp2(_mm512_fmadd_ps(scores, scale, shift));
        sum = _mm512_add_ps(sum, weight);
        store_narrow(weight, out);
    }
    (maximum, _mm512_reduce_add_ps(sum))
}

/// Writes values times a factor, rounded to bf16.
///
/// Only for a CPU for which [`is_supported`] is true.
#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
pub(super) fn narrowed(values: &[f32; LANES], factor: f32) -> [u32; LANES / 2] {
    let mut out = [0; LANES / 2];
    store_narrow(_mm512_mul_ps(load(values), _mm512_set1_ps(factor)), &mut out);
    out
}

/// Computes 2^x for x up to 0, to 3e-7: the power of the nearest whole number by its exponent, the rest, at
/// most a half, by a Taylor polynomial. Minus infinity gives 0.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2(x: __m512) -> __m512 {
    /// The coefficients ln(2)^n / n!, of the highest power first.
    const TERMS: [f32; 6] = [
        0.000_154_035_3,
        0.001_333_355_8,
        0.009_618_129,
        0.055_504_11,
        0.240_226_5,
        std::f32::consts::LN_2,
    ];
    /// Below it, 2^x is 0 in bf16 and f32.
    const LOWEST: f32 = -200.0;
    // A NaN stays: the second operand of those that cannot be compared.
    let x = _mm512_max_ps(_mm512_set1_ps(LOWEST), x);
    let whole = _mm512_roundscale_ps::<8>(x);
    let rest = _mm512_sub_ps(x, whole);
    let mut power = _mm512_set1_ps(TERMS[0]);
    for term in &TERMS[1..] {
        power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(*term));
    }
    _mm512_scalef_ps(_mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0)), whole)
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code)]
fn load(values: &[f32; LANES]) -> __m512 {
    // SAFETY: an array of 16 values of 4 bytes; the instruction needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// Loads the first `count` values; the others are minus infinity.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code)]
fn load_first(values: &[f32; LANES], count: usize) -> __m512 {
    let mask = if count >= LANES { u16::MAX } else { (1 << count) - 1 };
    // SAFETY: as for `load`.
    unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(f32::NEG_INFINITY), mask, values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code)]
fn store(values: __m512, out: &mut [f32; LANES]) {
    // SAFETY: as for `load`, of an array that may be written.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code)]
fn load_pairs(pairs: &Register) -> __m512bh {
    // SAFETY: an array of 16 values of 4 bytes; the instruction needs no alignment.
    pairs_of(unsafe { _mm512_loadu_si512(pairs.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code)]
fn pairs_of(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of which any are a value.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
#[allow(unsafe_code)]
fn store_narrow(values: __m512, out: &mut [u32; LANES / 2]) {
    let narrow = _mm512_cvtneps_pbh(values);
    // SAFETY: both vectors are 256 bits of which any are a value; the array has as many, and the instruction
    // needs no alignment.
    unsafe {
        _mm256_storeu_si256(
            out.as_mut_ptr().cast(),
            std::mem::transmute::<__m256bh, __m256i>(narrow),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn weights_are_powers_of_two_to_3e_7_and_zero_beyond_the_count() {
        if !is_supported() {
            return;
        }
        let values: Vec<f32> = (0..1024).map(|i| -(i as f32) * 0.123).collect();
        let mut narrow = [[7; LANES / 2]; 64];
        // SAFETY: the CPU has the features.
        let (maximum, sum) = unsafe { weights(values.as_chunks().0, 1000, 1.0, -50.0, &mut narrow) };
        assert_eq!(maximum, 0.0);
        let exact = |x: f32| f64::from(x).exp2();
        let expected: f64 = values[..1000].iter().map(|x| exact(*x)).sum();
        assert!((f64::from(sum) / expected - 1.0).abs() < 1e-6, "{sum}");
        for (index, value) in values.iter().enumerate() {
            let pair = narrow.as_flattened()[index / 2];
            let bits = if index % 2 == 0 { pair << 16 } else { pair & 0xffff_0000 };
            let weight = f64::from(f32::from_bits(bits));
            let expected = if index < 1000 { exact(*value) } else { 0.0 };
            // Half a unit of bf16, and the error of the power.
            assert!(
                (weight - expected).abs() <= expected * (1.0 / 256.0 + 3e-7) + 1e-38,
                "{value}"
            );
        }
    }
}
