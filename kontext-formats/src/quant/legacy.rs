//! Blocks of 32 elements with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! Source: ggml-org/llama.cpp `ggml/src/ggml-quants.c`, `dequantize_row_q*`, and `gguf-py/gguf/quants.py`.
//!
//! In the 4- and 5-bit formats, the low halves of 16 bytes are the first 16 elements and the high halves the
//! other 16. The fifth bits are stored separately, in a 32-bit word.

use super::half_floats::from_f16;

/// Elements per block.
pub(super) const BLOCK: usize = 32;
pub(super) const HALF: usize = BLOCK / 2;

/// Reads the f16 at offset `at` of a block.
#[inline(always)]
pub(super) fn f16_at(block: &[u8], at: usize) -> f32 {
    from_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Unpacks Q4_0: `d * (q - 8)`.
#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; BLOCK]) {
    let (d, q) = (f16_at(block, 0), &block[2..]);
    for i in 0..HALF {
        out[i] = d * (i32::from(q[i] & 15) - 8) as f32;
        out[i + HALF] = d * (i32::from(q[i] >> 4) - 8) as f32;
    }
}

/// Unpacks Q4_1: `d * q + m`.
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; BLOCK]) {
    let (d, m, q) = (f16_at(block, 0), f16_at(block, 2), &block[4..]);
    for i in 0..HALF {
        out[i] = d * f32::from(q[i] & 15) + m;
        out[i + HALF] = d * f32::from(q[i] >> 4) + m;
    }
}

/// Unpacks Q5_0: `d * (q - 16)`.
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; BLOCK]) {
    let (d, fifth, q) = (f16_at(block, 0), fifth_bits(block, 2), &block[6..]);
    for i in 0..HALF {
        out[i] = d * ((u32::from(q[i] & 15) | (fifth >> i & 1) << 4) as i32 - 16) as f32;
        out[i + HALF] = d * ((u32::from(q[i] >> 4) | (fifth >> (i + HALF) & 1) << 4) as i32 - 16) as f32;
    }
}

/// Unpacks Q5_1: `d * q + m`.
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; BLOCK]) {
    let (d, m, fifth, q) = (f16_at(block, 0), f16_at(block, 2), fifth_bits(block, 4), &block[8..]);
    for i in 0..HALF {
        out[i] = d * (u32::from(q[i] & 15) | (fifth >> i & 1) << 4) as i32 as f32 + m;
        out[i + HALF] = d * (u32::from(q[i] >> 4) | (fifth >> (i + HALF) & 1) << 4) as i32 as f32 + m;
    }
}

#[inline(always)]
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Unpacks Q8_0: `d * q`.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; BLOCK]) {
    let (d, q) = (f16_at(block, 0), &block[2..]);
    for i in 0..BLOCK {
        out[i] = d * f32::from(q[i] as i8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_element_of_a_q4_0_block_stand_in_its_first_and_last_half_byte() {
        let mut block = [0x88; 18];
        block[..2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
        (block[2], block[17]) = (0x8f, 0x08);
        let mut out = [1.0; BLOCK];
        q4_0(&block, &mut out);
        assert_eq!((out[0], out[1], out[31], out[15]), (3.5, 0.0, -4.0, 0.0));
    }
}
