//! Storage formats of weights: their names, block sizes and GGUF type numbers.
//!
//! Source: ggml-org/llama.cpp `gguf-py/gguf/constants.py`, `GGMLQuantizationType` and `GGML_QUANT_SIZES`.

/// A storage format of a matrix: blocks of [`Format::block`] elements along a row, of [`Format::bytes`] bytes
/// each.
///
/// The formats from `Q4_0` to `Iq4Xs` store scales in each block. The others are plain numbers, or need a
/// [`Scale`](super::Scale).
///
/// # Example
/// ```
/// use kontext_formats::quant::Format;
/// assert_eq!((Format::Q4K.block(), Format::Q4K.bytes()), (256, 144));
/// assert_eq!(Format::Q4K.row_bytes(3072), Some(1728));
/// assert_eq!(Format::Q4K.row_bytes(64), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// IEEE binary32, little-endian.
    F32,
    /// IEEE binary16, little-endian.
    F16,
    /// The upper half of an f32, little-endian.
    Bf16,
    /// 4 bits: `d * (q - 8)`.
    Q4_0,
    /// 4 bits: `d * q + m`.
    Q4_1,
    /// 5 bits: `d * (q - 16)`.
    Q5_0,
    /// 5 bits: `d * q + m`.
    Q5_1,
    /// 8 bits: `d * q`.
    Q8_0,
    /// 2 bits, with 4-bit scales and minima per 16 elements.
    Q2K,
    /// 3 bits, with 6-bit scales per 16 elements.
    Q3K,
    /// 4 bits, with 6-bit scales and minima per 32 elements.
    Q4K,
    /// 5 bits, with 6-bit scales and minima per 32 elements.
    Q5K,
    /// 6 bits, with 8-bit scales per 16 elements.
    Q6K,
    /// 4-bit indices into a table of 16 levels.
    Iq4Nl,
    /// 4-bit indices into the same table, with 6-bit scales per 32 elements.
    Iq4Xs,
    /// 8 bits: sign, 4 exponent bits, 3 mantissa bits; no infinities, NaN is 0x7f and 0xff (torch's
    /// `float8_e4m3fn`).
    F8E4M3,
    /// 8 bits: sign, 5 exponent bits, 2 mantissa bits: the upper half of an f16 (torch's `float8_e5m2`).
    F8E5M2,
    /// Signed bytes, scaled by row.
    Int8,
    /// bitsandbytes' NF4: 4-bit indices into a table of 16 levels, scaled by block; the first of two in the
    /// high bits.
    Nf4,
    /// bitsandbytes' FP4: sign, 2 exponent bits, 1 mantissa bit, over 12; packed and scaled as NF4.
    Fp4,
}

/// Properties of a format.
struct Facts {
    name: &'static str,
    block: usize,
    bytes: usize,
    gguf: Option<u32>,
}

impl Format {
    /// All formats, in declaration order.
    pub const ALL: [Format; 20] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Iq4Nl,
        Format::Iq4Xs,
        Format::F8E4M3,
        Format::F8E5M2,
        Format::Int8,
        Format::Nf4,
        Format::Fp4,
    ];

    const fn facts(self) -> Facts {
        let (name, block, bytes, gguf) = match self {
            Format::F32 => ("F32", 1, 4, Some(0)),
            Format::F16 => ("F16", 1, 2, Some(1)),
            Format::Bf16 => ("BF16", 1, 2, Some(30)),
            Format::Q4_0 => ("Q4_0", 32, 18, Some(2)),
            Format::Q4_1 => ("Q4_1", 32, 20, Some(3)),
            Format::Q5_0 => ("Q5_0", 32, 22, Some(6)),
            Format::Q5_1 => ("Q5_1", 32, 24, Some(7)),
            Format::Q8_0 => ("Q8_0", 32, 34, Some(8)),
            Format::Q2K => ("Q2_K", 256, 84, Some(10)),
            Format::Q3K => ("Q3_K", 256, 110, Some(11)),
            Format::Q4K => ("Q4_K", 256, 144, Some(12)),
            Format::Q5K => ("Q5_K", 256, 176, Some(13)),
            Format::Q6K => ("Q6_K", 256, 210, Some(14)),
            Format::Iq4Nl => ("IQ4_NL", 32, 18, Some(20)),
            Format::Iq4Xs => ("IQ4_XS", 256, 136, Some(23)),
            Format::F8E4M3 => ("F8_E4M3", 1, 1, None),
            Format::F8E5M2 => ("F8_E5M2", 1, 1, None),
            Format::Int8 => ("INT8", 1, 1, None),
            Format::Nf4 => ("NF4", 2, 1, None),
            Format::Fp4 => ("FP4", 2, 1, None),
        };
        Facts {
            name,
            block,
            bytes,
            gguf,
        }
    }

    /// Returns the elements per block: a power of two from 1 to 256.
    #[must_use]
    pub const fn block(self) -> usize {
        self.facts().block
    }

    /// Returns the bytes per block.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.facts().bytes
    }

    /// Returns the name in common use: "Q4_K", "BF16", "NF4".
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Returns the bytes of a row of `columns` elements, or `None` if they are not a whole number of blocks
    /// or the size overflows.
    #[must_use]
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        let facts = self.facts();
        if columns.is_multiple_of(facts.block) {
            (columns / facts.block).checked_mul(facts.bytes)
        } else {
            None
        }
    }

    /// Returns the type number in a GGUF file, or `None` for formats outside GGUF.
    #[must_use]
    pub const fn gguf_type(self) -> Option<u32> {
        self.facts().gguf
    }

    /// Returns the format of a GGUF type number, if supported.
    #[must_use]
    pub fn from_gguf_type(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.gguf_type() == Some(number))
    }
}

/// A format as users name it.
impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_by_its_gguf_number() {
        for format in Format::ALL {
            if let Some(number) = format.gguf_type() {
                assert_eq!(Format::from_gguf_type(number), Some(format));
            }
        }
        assert_eq!(Format::from_gguf_type(16), None);
    }

    #[test]
    fn all_formats_are_listed_once_and_in_order() {
        assert!(Format::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(Format::ALL.len(), Format::Fp4 as usize + 1);
    }

    #[test]
    fn a_row_of_half_a_block_has_no_size() {
        assert_eq!(Format::Q8_0.row_bytes(64), Some(68));
        assert_eq!(Format::Q8_0.row_bytes(48), None);
        assert_eq!(Format::Nf4.row_bytes(3), None);
        assert_eq!(Format::F32.row_bytes(usize::MAX), None);
    }
}
