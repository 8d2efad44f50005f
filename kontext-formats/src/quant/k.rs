//! Super-blocks of 256 elements whose scales are quantised, too: Q2_K to Q6_K.
//!
//! Source: ggml-org/llama.cpp `ggml/src/ggml-quants.c`, `dequantize_row_q*_K`, and `gguf-py/gguf/quants.py`,
//! whose order of operations is kept.

use super::legacy::f16_at;

/// Elements per super-block.
pub(super) const BLOCK: usize = 256;

/// Unpacks Q2_K: `d * s * q - m * t`, 2 bits; `s` and `t` are the halves of a byte per 16 elements.
#[inline(always)]
pub(super) fn q2(block: &[u8; 84], out: &mut [f32; BLOCK]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, m) = (f16_at(block, 80), f16_at(block, 82));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, shift) = (group / 4, 2 * (group % 4));
        let q = &q[32 * half..][..32];
        for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = scales[2 * group + part];
            let (d, m) = (d * f32::from(scale & 15), m * f32::from(scale >> 4));
            for i in 0..16 {
                out[i] = d * f32::from(q[16 * part + i] >> shift & 3) - m;
            }
        }
    }
}

/// Unpacks Q3_K: `d * (s - 32) * (q - 4)`, 3 bits: two stored together, the third separately.
#[inline(always)]
pub(super) fn q3(block: &[u8; 110], out: &mut [f32; BLOCK]) {
    let (high, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = f16_at(block, 108);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, shift) = (group / 4, 2 * (group % 4));
        let q = &q[32 * half..][..32];
        for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let s = 2 * group + part;
            let scale = scales[s % 8] >> (4 * (s / 8)) & 15 | (scales[8 + s % 4] >> (2 * (s / 4)) & 3) << 4;
            let d = d * f32::from(scale as i8 - 32);
            for i in 0..16 {
                let value = q[16 * part + i] >> shift & 3 | (high[16 * part + i] >> group & 1) << 2;
                out[i] = d * f32::from(value as i8 - 4);
            }
        }
    }
}

/// Unpacks Q4_K: `d * s * q - m * t`, 4 bits.
#[inline(always)]
pub(super) fn q4(block: &[u8; 144], out: &mut [f32; BLOCK]) {
    let (d, m, q) = (f16_at(block, 0), f16_at(block, 2), &block[16..]);
    let (scales, minima) = scales_and_minima(&block[4..16]);
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let q = &q[32 * pair..][..32];
        let (low, high) = out.split_at_mut(32);
        let (d0, m0) = (d * f32::from(scales[2 * pair]), m * f32::from(minima[2 * pair]));
        let (d1, m1) = (d * f32::from(scales[2 * pair + 1]), m * f32::from(minima[2 * pair + 1]));
        for i in 0..32 {
            low[i] = d0 * f32::from(q[i] & 15) - m0;
            high[i] = d1 * f32::from(q[i] >> 4) - m1;
        }
    }
}

/// Unpacks Q5_K: `d * s * q - m * t`, 5 bits: four stored together, the fifth separately.
#[inline(always)]
pub(super) fn q5(block: &[u8; 176], out: &mut [f32; BLOCK]) {
    let (d, m, fifth, q) = (f16_at(block, 0), f16_at(block, 2), &block[16..48], &block[48..]);
    let (scales, minima) = scales_and_minima(&block[4..16]);
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let q = &q[32 * pair..][..32];
        let (low, high) = out.split_at_mut(32);
        let (d0, m0) = (d * f32::from(scales[2 * pair]), m * f32::from(minima[2 * pair]));
        let (d1, m1) = (d * f32::from(scales[2 * pair + 1]), m * f32::from(minima[2 * pair + 1]));
        for i in 0..32 {
            let bits = fifth[i] >> (2 * pair);
            low[i] = d0 * f32::from(q[i] & 15 | (bits & 1) << 4) - m0;
            high[i] = d1 * f32::from(q[i] >> 4 | (bits & 2) << 3) - m1;
        }
    }
}

/// Extracts the 6-bit scales and minima of 8 groups from 12 bytes.
#[inline(always)]
fn scales_and_minima(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (d, m, both) = (packed[i], packed[4 + i], packed[8 + i]);
        (scales[i], minima[i]) = (d & 63, m & 63);
        (scales[4 + i], minima[4 + i]) = (both & 15 | d >> 6 << 4, both >> 4 | m >> 6 << 4);
    }
    (scales, minima)
}

/// Unpacks Q6_K: `d * s * (q - 32)`, 6 bits: four stored together, two separately; `s` is a signed byte per
/// 16 elements.
#[inline(always)]
pub(super) fn q6(block: &[u8; 210], out: &mut [f32; BLOCK]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(block, 208);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (group / 4, group % 4);
        let low = &low[64 * half + 32 * (quarter % 2)..][..32];
        let high = &high[32 * half..][..32];
        for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = d * f32::from(scales[2 * group + part] as i8);
            for (i, out) in out.iter_mut().enumerate() {
                let at = 16 * part + i;
                let value = low[at] >> (4 * (quarter / 2)) & 15 | (high[at] >> (2 * quarter) & 3) << 4;
                *out = d * f32::from(value as i8 - 32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_bit_scales_are_put_together_from_their_parts() {
        let mut packed = [0; 12];
        (packed[1], packed[5], packed[9]) = (0b11_000001, 0b10_000010, 0b0110_0101);
        let (scales, minima) = scales_and_minima(&packed);
        assert_eq!((scales[1], minima[1]), (1, 2));
        assert_eq!((scales[5], minima[5]), (0b11_0101, 0b10_0110));
    }

    #[test]
    fn a_q6_k_block_of_zeros_is_minus_32_steps_of_its_scales() {
        let mut block = [0; 210];
        block[192..208].fill(3);
        block[208..].copy_from_slice(&half::f16::from_f32(0.25).to_le_bytes());
        let mut out = [0.0; BLOCK];
        q6(&block, &mut out);
        assert_eq!(out, [-24.0; BLOCK]);
    }
}
