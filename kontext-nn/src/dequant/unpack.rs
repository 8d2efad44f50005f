//! Unpacking of rows of whole blocks to a tensor.

use kontext_core::Result;
use kontext_formats::quant::Format;
use tch::{Kind, Tensor};

use super::blocks::{self, Blocks};
use super::k;

/// Unpacks `bytes` u8 [R, bytes per row] times the scales `scales` f32 [R or 1, G], each for as many
/// columns, to a contiguous `out` [R, C], rounded once to its dtype. The bytes of a row are contiguous. An `out` of e4m3
/// takes the codes of that format, without the scales.
pub(super) fn unpack(bytes: &Tensor, format: Format, scales: Option<&Tensor>, out: &Tensor) -> Result<()> {
    let numbers = |kind| multiply(&bytes.f_view_dtype(kind)?, scales, out);
    match format {
        Format::F32 => numbers(Kind::Float),
        Format::F16 => numbers(Kind::Half),
        Format::Bf16 => numbers(Kind::BFloat16),
        Format::F8E4M3 if out.kind() == Kind::Float8e4m3fn => {
            out.shallow_clone().f_copy_(&bytes.f_view_dtype(out.kind())?)?;
            Ok(())
        }
        Format::F8E4M3 => numbers(Kind::Float8e4m3fn),
        Format::F8E5M2 => numbers(Kind::Float8e5m2),
        Format::Int8 => numbers(Kind::Int8),
        Format::Nf4 | Format::Fp4 => multiply(&blocks::pairs(bytes, format)?.f_reshape(out.size())?, scales, out),
        _ if scales.is_none() => unpack_blocks(bytes, format, out),
        _ => {
            let values = Tensor::f_empty(out.size(), (Kind::Float, out.device()))?;
            unpack_blocks(bytes, format, &values)?;
            multiply(&values, scales, out)
        }
    }
}

/// Unpacks blocks that contain their scales.
fn unpack_blocks(bytes: &Tensor, format: Format, out: &Tensor) -> Result<()> {
    let blocks = Blocks::new(bytes, format)?;
    match format {
        Format::Q4_0 => blocks::q4_0(&blocks, out),
        Format::Q4_1 => blocks::q4_1(&blocks, out),
        Format::Q5_0 => blocks::q5_0(&blocks, out),
        Format::Q5_1 => blocks::q5_1(&blocks, out),
        Format::Q8_0 => blocks::q8_0(&blocks, out),
        Format::Iq4Nl => blocks::iq4_nl(&blocks, out),
        Format::Iq4Xs => blocks::iq4_xs(&blocks, out),
        Format::Q2K => k::q2(&blocks, out),
        Format::Q3K => k::q3(&blocks, out),
        Format::Q4K => k::q4(&blocks, out),
        Format::Q5K => k::q5(&blocks, out),
        Format::Q6K => k::q6(&blocks, out),
        Format::F32
        | Format::F16
        | Format::Bf16
        | Format::F8E4M3
        | Format::F8E5M2
        | Format::Int8
        | Format::Nf4
        | Format::Fp4 => Err(kontext_core::Error::bug(format!(
            "blocks of {}, which has none with scales",
            format.name()
        ))),
    }
}

/// Computes `out = values * scales` in f32.
fn multiply(values: &Tensor, scales: Option<&Tensor>, out: &Tensor) -> Result<()> {
    let Some(scales) = scales else {
        out.shallow_clone().f_copy_(values)?;
        return Ok(());
    };
    let &[rows, columns] = out.size().as_slice() else {
        return Ok(());
    };
    let groups = scales.size().last().copied().unwrap_or(1).max(1);
    let grouped = [rows, groups, columns / groups];
    let values = match values.kind() {
        // libtorch cannot multiply fp8, and bf16 represents all of its values.
        Kind::Float8e4m3fn | Kind::Float8e5m2 => values.f_to_kind(Kind::BFloat16)?,
        _ => values.shallow_clone(),
    };
    let _ = values
        .f_reshape(grouped)?
        .f_mul_out(&out.f_view(grouped)?, &scales.f_unsqueeze(-1)?)?;
    Ok(())
}
