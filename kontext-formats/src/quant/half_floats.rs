//! Conversion between 16-bit floats and f32 without branches, so that loops over them vectorise.

/// Converts from IEEE binary16; a NaN becomes quiet, as in hardware.
#[inline(always)]
pub(super) fn from_f16(half: u16) -> f32 {
    const EXPONENT: u32 = 0x7f80_0000;
    const QUIET: u32 = 0x0040_0000;
    /// 2^-14, the smallest normal value.
    const SMALLEST: u32 = 113 << 23;
    let half = u32::from(half);
    let digits = (half & 0x7fff) << 13;
    let normal = digits + (112 << 23);
    let tiny = (f32::from_bits(digits | SMALLEST) - f32::from_bits(SMALLEST)).to_bits();
    let special = digits | EXPONENT | if half & 0x03ff == 0 { 0 } else { QUIET };
    let value = match half & 0x7c00 {
        0 => tiny,
        0x7c00 => special,
        _ => normal,
    };
    f32::from_bits((half & 0x8000) << 16 | value)
}

/// Converts from bfloat16, bit for bit.
#[inline(always)]
pub(super) fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Rounds to the nearest bfloat16, ties to even; a NaN stays NaN and becomes quiet.
#[inline(always)]
pub(super) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let nan = (bits >> 16) as u16 | 0x0040;
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if value.is_nan() { nan } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_16_bit_floats_widen_as_those_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            assert_eq!(
                from_f16(bits).to_bits(),
                half::f16::from_bits(bits).to_f32_const().to_bits(),
                "{bits:#x}"
            );
            // The half crate makes a NaN quiet; numpy and torch keep its bits.
            let expected = half::bf16::from_bits(bits).to_f32();
            assert!(from_bf16(bits) == expected || expected.is_nan() && from_bf16(bits).is_nan());
        }
    }

    #[test]
    fn rounding_to_bf16_is_that_of_the_half_crate() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                assert_eq!(
                    to_bf16(value),
                    half::bf16::from_f32(value).to_bits(),
                    "{:#x}",
                    value.to_bits()
                );
            }
        }
    }
}
