//! 4-bit indices into a table with denser levels near zero: IQ4_NL and IQ4_XS.
//!
//! Source: ggml-org/llama.cpp `ggml/src/ggml-quants.c`, `dequantize_row_iq4_nl` and `dequantize_row_iq4_xs`,
//! and `gguf-py/gguf/quants.py`.

use super::legacy::f16_at;
use super::{k, legacy};

/// The values of the 4-bit codes of IQ4_NL and IQ4_XS, in units of the block's scale.
pub static LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// Unpacks IQ4_NL: `d * level`.
#[inline(always)]
pub(super) fn nl(block: &[u8; 18], out: &mut [f32; legacy::BLOCK]) {
    let mut q = [0; legacy::HALF];
    q.copy_from_slice(&block[2..]);
    levels(f16_at(block, 0), q, out);
}

/// Unpacks IQ4_XS: `d * (s - 32) * level`; the 6 bits of `s` per 32 elements are stored in two places.
#[inline(always)]
pub(super) fn xs(block: &[u8; 136], out: &mut [f32; k::BLOCK]) {
    let d = f16_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    let (low, q) = (&block[4..8], &block[8..]);
    let q = q.as_chunks::<{ legacy::HALF }>().0;
    for (group, (out, q)) in out.as_chunks_mut::<{ legacy::BLOCK }>().0.iter_mut().zip(q).enumerate() {
        let scale = low[group / 2] >> (4 * (group % 2)) & 15 | ((high >> (2 * group)) as u8 & 3) << 4;
        levels(d * f32::from(scale as i8 - 32), *q, out);
    }
}

#[inline(always)]
fn levels(d: f32, q: [u8; legacy::HALF], out: &mut [f32; legacy::BLOCK]) {
    for i in 0..legacy::HALF {
        out[i] = d * LEVELS[(q[i] & 15) as usize];
        out[i + legacy::HALF] = d * LEVELS[(q[i] >> 4) as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iq4_xs_scale_of_33_multiplies_by_one() {
        let mut block = [0; 136];
        block[..2].copy_from_slice(&half::f16::from_f32(2.0).to_le_bytes());
        // The first group: 33 = 2 * 16 + 1. The others: 0.
        (block[2], block[4], block[8]) = (2, 1, 0xf7);
        let mut out = [0.0; k::BLOCK];
        xs(&block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (-20.0, 226.0, -254.0));
        assert_eq!(out[32], 2.0 * -32.0 * -127.0);
    }
}
