//! Super-blocks of 256 elements: Q2_K to Q6_K. The host versions are in `quant/k.rs`.

use kontext_core::Result;
use tch::{Kind, Tensor};

use super::blocks::{Blocks, bits, join, less, scale, scale_add};

/// Unpacks Q2_K: `d * s * q - m * t`, 2 bits; `s` and `t` are the halves of a byte per 16 elements.
pub(super) fn q2(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let q = two_bits(blocks, 16)?.f_view_(blocks.shape([16, 16]))?;
    let (d, m) = scales(blocks, 80, &bits(&blocks.bytes(0, [16])?, 4)?)?;
    scale_add(&d, &q, &m, out)
}

/// Unpacks Q3_K: `d * (s - 32) * (q - 4)`, 3 bits: two stored together, the third separately.
pub(super) fn q3(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let q = join(two_bits(blocks, 32)?, bits(&blocks.bytes(0, [32])?, 1)?, 2)?;
    let q = less(&q.f_view_(blocks.shape([16, 16]))?, 4)?;
    let s = join(bits(&blocks.bytes(96, [8])?, 4)?, bits(&blocks.bytes(104, [4])?, 2)?, 4)?;
    let s = less(&s.f_view_(blocks.shape([16]))?, 32)?;
    scale(&blocks.halves(108, 1)?.f_mul(&s)?.f_unsqueeze(-1)?, &q, out)
}

/// Unpacks Q4_K: `d * s * q - m * t`, 4 bits.
pub(super) fn q4(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let q = bits(&blocks.bytes(16, [4, 32])?, 4)?.f_view_(blocks.shape([8, 32]))?;
    let (d, m) = scales(blocks, 0, &scales_and_minima(blocks)?)?;
    scale_add(&d, &q, &m, out)
}

/// Unpacks Q5_K: `d * s * q - m * t`, 5 bits: four stored together, the fifth separately.
pub(super) fn q5(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let q = bits(&blocks.bytes(48, [4, 32])?, 4)?.f_view_(blocks.shape([8, 32]))?;
    let q = join(q, bits(&blocks.bytes(16, [32])?, 1)?, 4)?;
    let (d, m) = scales(blocks, 0, &scales_and_minima(blocks)?)?;
    scale_add(&d, &q, &m, out)
}

/// Unpacks Q6_K: `d * s * (q - 32)`, 6 bits: four stored together, two separately; `s` is a signed byte per
/// 16 elements.
pub(super) fn q6(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let q = join(bits(&blocks.bytes(0, [2, 64])?, 4)?, two_bits(blocks, 128)?, 4)?;
    let q = less(&q.f_view_(blocks.shape([16, 16]))?, 32)?;
    let s = blocks.bytes(192, [16])?.f_view_dtype(Kind::Int8)?;
    scale(&blocks.halves(208, 1)?.f_mul(&s)?.f_unsqueeze(-1)?, &q, out)
}

/// Splits 64 bytes into 256 numbers of 2 bits: of each 32 bytes, first the lowest bits of all. [R, N, 2, 4,
/// 32]
fn two_bits(blocks: &Blocks, at: i64) -> Result<Tensor> {
    bits(&blocks.bytes(at, [2, 32])?, 2)
}

/// Returns `d * s` and `-m * t` [R, N, S, 1], from two f16 and from `s` and `t` [R, N, 2, S].
fn scales(blocks: &Blocks, at: i64, scales: &Tensor) -> Result<(Tensor, Tensor)> {
    let both = blocks.halves(at, 2)?.f_unsqueeze(-1)?.f_mul(scales)?.f_unsqueeze(-1)?; // [R, N, 2, S, 1]
    Ok((both.f_select(2, 0)?, both.f_select(2, 1)?.f_neg()?))
}

/// Extracts the 6-bit scales and minima of 8 groups from 12 bytes: [R, N, 2, 8].
fn scales_and_minima(blocks: &Blocks) -> Result<Tensor> {
    let (both, rest) = (blocks.bytes(4, [2, 4])?, bits(&blocks.bytes(12, [4])?, 4)?);
    let high = both.f_bitwise_right_shift_tensor_scalar(6)?;
    Ok(Tensor::f_cat(&[both.f_bitwise_and(63)?, join(rest, high, 4)?], -1)?)
}
