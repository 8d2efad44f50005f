//! Blocks of 32 elements, and 4-bit lookup tables. The host versions are in `legacy.rs`, `iq4.rs` and
//! `nf4.rs`.
//!
//! Numbers of few bits stay in bytes until the single multiplication that writes them, in which libtorch
//! widens them.

use std::sync::Mutex;

use tch::{Device, Kind, Tensor};

use kontext_core::Result;
use kontext_formats::quant::{FP4_PAIRS, Format, IQ4_LEVELS, NF4_PAIRS};

/// Whole blocks: u8 [R, N, bytes per block].
pub(super) struct Blocks(Tensor);

impl Blocks {
    /// Splits rows [R, N * bytes per block] into blocks.
    pub(super) fn new(bytes: &Tensor, format: Format) -> Result<Self> {
        let (rows, size) = (bytes.size().first().copied().unwrap_or_default(), format.bytes() as i64);
        let count = bytes.size().last().copied().unwrap_or_default() / size;
        Ok(Self(bytes.f_reshape([rows, count, size])?))
    }

    /// Returns the bytes of each block from `at` on, in this shape: [R, N, ..shape].
    pub(super) fn bytes<const D: usize>(&self, at: i64, shape: [i64; D]) -> Result<Tensor> {
        let bytes = self.0.f_narrow(2, at, shape.iter().product())?;
        Ok(bytes.f_reshape(self.shape(shape))?)
    }

    /// Returns `count` consecutive f16 of each block from `at` on, as f32: [R, N, count].
    pub(super) fn halves(&self, at: i64, count: i64) -> Result<Tensor> {
        Ok(self
            .0
            .f_narrow(2, at, 2 * count)?
            .f_view_dtype(Kind::Half)?
            .f_to_kind(Kind::Float)?)
    }

    /// Returns the shape [R, N, ..inner].
    pub(super) fn shape<const D: usize>(&self, inner: [i64; D]) -> Vec<i64> {
        self.0.size().iter().take(2).copied().chain(inner).collect()
    }
}

/// Splits each byte into its numbers of `width` bits, lowest bits first: u8 [.., K] to [.., 8 / width, K].
pub(super) fn bits(bytes: &Tensor, width: i64) -> Result<Tensor> {
    // Created on the device: a copy from the host would wait for all work queued there.
    let shifts = Tensor::f_arange_start_step(0, 8, width, (Kind::Uint8, bytes.device()))?;
    let mut parts = bytes.f_unsqueeze(-2)?.f_bitwise_right_shift(&shifts.f_unsqueeze(-1)?)?;
    Ok(parts.f_bitwise_and_((1_i64 << width) - 1)?)
}

/// Computes `low | high << at`, in the shape of `low`.
pub(super) fn join(mut low: Tensor, mut high: Tensor, at: i64) -> Result<Tensor> {
    let high = high.f_bitwise_left_shift_tensor_scalar_(at)?.f_reshape(low.size())?;
    Ok(low.f_bitwise_or_tensor_(&high)?)
}

/// Computes `q - zero` of u8 as i8.
pub(super) fn less(q: &Tensor, zero: i64) -> Result<Tensor> {
    Ok(q.f_view_dtype(Kind::Int8)?.f_sub_scalar_(zero)?)
}

/// Computes `out = d * q`.
pub(super) fn scale(d: &Tensor, q: &Tensor, out: &Tensor) -> Result<()> {
    let _ = q.f_mul_out(&out.f_view_(q.size())?, d)?;
    Ok(())
}

/// Computes `out = d * q + m`. The product is exact in f32, since a scale has at most 17 significant bits and
/// a number 5, so it does not matter whether libtorch rounds it before it adds.
pub(super) fn scale_add(d: &Tensor, q: &Tensor, m: &Tensor, out: &Tensor) -> Result<()> {
    let _ = m.f_addcmul_out(&out.f_view_(q.size())?, d, q)?;
    Ok(())
}

/// Splits 16 bytes into 32 numbers of 4 bits, the low halves first: [R, N, 2, 16].
fn halves_of_bytes(blocks: &Blocks, at: i64) -> Result<Tensor> {
    bits(&blocks.bytes(at, [16])?, 4)
}

/// Adds the fifth bits of 32 numbers, from 4 bytes.
fn with_fifth_bits(blocks: &Blocks, q: Tensor, at: i64) -> Result<Tensor> {
    join(q, bits(&blocks.bytes(at, [4, 1])?, 1)?, 4)
}

/// Returns the f16 at offset `at` of each block: [R, N, 1, 1].
fn block_scale(blocks: &Blocks, at: i64) -> Result<Tensor> {
    Ok(blocks.halves(at, 1)?.f_unsqueeze(-1)?)
}

/// Unpacks Q4_0: `d * (q - 8)`.
pub(super) fn q4_0(blocks: &Blocks, out: &Tensor) -> Result<()> {
    scale(&block_scale(blocks, 0)?, &less(&halves_of_bytes(blocks, 2)?, 8)?, out)
}

/// Unpacks Q4_1: `d * q + m`.
pub(super) fn q4_1(blocks: &Blocks, out: &Tensor) -> Result<()> {
    scale_add(
        &block_scale(blocks, 0)?,
        &halves_of_bytes(blocks, 4)?,
        &block_scale(blocks, 2)?,
        out,
    )
}

/// Unpacks Q5_0: `d * (q - 16)`.
pub(super) fn q5_0(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let q = with_fifth_bits(blocks, halves_of_bytes(blocks, 6)?, 2)?;
    scale(&block_scale(blocks, 0)?, &less(&q, 16)?, out)
}

/// Unpacks Q5_1: `d * q + m`.
pub(super) fn q5_1(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let q = with_fifth_bits(blocks, halves_of_bytes(blocks, 8)?, 4)?;
    scale_add(&block_scale(blocks, 0)?, &q, &block_scale(blocks, 2)?, out)
}

/// Unpacks Q8_0: `d * q`.
pub(super) fn q8_0(blocks: &Blocks, out: &Tensor) -> Result<()> {
    scale(
        &blocks.halves(0, 1)?,
        &blocks.bytes(2, [32])?.f_view_dtype(Kind::Int8)?,
        out,
    )
}

/// Unpacks IQ4_NL: `d * level`.
pub(super) fn iq4_nl(blocks: &Blocks, out: &Tensor) -> Result<()> {
    levels(&block_scale(blocks, 0)?, &blocks.bytes(2, [16])?, out)
}

/// Unpacks IQ4_XS: `d * (s - 32) * level`; the 6 bits of `s` per 32 elements are stored in two places.
pub(super) fn iq4_xs(blocks: &Blocks, out: &Tensor) -> Result<()> {
    let low = bits(&blocks.bytes(4, [4, 1])?, 4)?;
    let s = less(&join(low, bits(&blocks.bytes(2, [2, 1])?, 2)?, 4)?, 32)?.f_reshape(blocks.shape([8]))?;
    let d = blocks.halves(0, 1)?.f_mul(&s)?;
    levels(&d.f_unsqueeze(-1)?.f_unsqueeze(-1)?, &blocks.bytes(8, [8, 16])?, out)
}

/// Computes `out = d * level` for bytes [.., 16] whose low halves are the first 16 elements, and `d` [.., 1,
/// 1].
fn levels(d: &Tensor, bytes: &Tensor, out: &Tensor) -> Result<()> {
    let levels = pairs(bytes, Format::Iq4Nl)?.f_transpose(-1, -2)?; // [.., 2, 16]
    scale(d, &levels, out)
}

/// Looks up the pair that each byte encodes: [..] to [.., 2], in f32, or in i8 if the levels are integers.
pub(super) fn pairs(bytes: &Tensor, format: Format) -> Result<Tensor> {
    let table = table(format, bytes.device())?;
    let index = bytes.f_to_kind(Kind::Int)?.f_flatten(0, -1)?;
    let mut shape = bytes.size();
    shape.push(2);
    Ok(table.f_index_select(0, &index)?.f_reshape(shape)?)
}

/// Lookup tables by device, cached because a copy from the host would wait for all work queued there.
static TABLES: Mutex<Vec<(Format, Device, Tensor)>> = Mutex::new(Vec::new());

/// Returns the lookup table [256, 2] of a format.
fn table(format: Format, device: Device) -> Result<Tensor> {
    let mut tables = kontext_core::lock(&TABLES);
    if let Some((.., table)) = tables.iter().find(|(f, d, _)| *f == format && *d == device) {
        return Ok(table.shallow_clone());
    }
    let table = match format {
        Format::Nf4 => Tensor::f_from_slice(NF4_PAIRS.as_flattened())?,
        Format::Fp4 => Tensor::f_from_slice(FP4_PAIRS.as_flattened())?,
        _ => {
            let level = |half: usize| IQ4_LEVELS[half] as i8;
            let pairs = (0..256).flat_map(|byte| [level(byte & 15), level(byte >> 4)]);
            Tensor::f_from_slice(&pairs.collect::<Vec<_>>())?
        }
    };
    let table = table.f_reshape([256, 2])?.f_to_device(device)?;
    tables.push((format, device, table.shallow_clone()));
    Ok(table)
}
