//! 8-bit floats: e4m3fn and e5m2.
//!
//! Source: pytorch/pytorch `torch/headeronly/util/Float8_e4m3fn.h`, `Float8_e5m2.h`. Computed, not looked up:
//! without branches, a loop processes eight at a time.

use super::half_floats;

/// Converts from e4m3: sign, 4 exponent bits with bias 7, 3 mantissa bits.
#[inline(always)]
pub(super) fn from_e4m3(code: u8) -> f32 {
    /// torch's value for the NaN code, without its sign.
    const NAN: u32 = 0x7ff0_0000;
    /// 2^-9, the smallest value.
    const STEP: f32 = 1.0 / 512.0;
    let digits = u32::from(code & 0x7f);
    let normal = (digits << 20) + (120 << 23);
    let tiny = (digits as f32 * STEP).to_bits();
    let value = match digits {
        0..8 => tiny,
        0x7f => NAN,
        _ => normal,
    };
    f32::from_bits(u32::from(code & 0x80) << 24 | value)
}

/// Converts from e5m2, the upper half of an f16.
#[inline(always)]
pub(super) fn from_e5m2(code: u8) -> f32 {
    half_floats::from_f16(u16::from(code) << 8)
}

/// Rounds to the nearest e4m3, ties to even; saturates at 448. torch returns NaN beyond 464, so weights are
/// clamped there before the conversion.
#[inline(always)]
pub(super) fn to_e4m3(value: f32) -> u8 {
    /// 448.
    const LARGEST: u32 = 0x43e0_0000;
    /// 2^-6, the smallest normal value.
    const NORMAL: u32 = 121 << 23;
    /// The last bit of a sum with 2^14 is 2^-9, the smallest value.
    const MAGIC: f32 = 16384.0;
    let bits = value.to_bits();
    let digits = (bits & 0x7fff_ffff).min(LARGEST);
    let tiny = (f32::from_bits(digits) + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits());
    let normal = digits
        .wrapping_sub(120 << 23)
        .wrapping_add(0x7_ffff + (digits >> 20 & 1))
        >> 20;
    let code = if digits < NORMAL { tiny } else { normal };
    let code = if value.is_nan() { 0x7f } else { code };
    (bits >> 24 & 0x80 | code) as u8
}

/// Rounds to the nearest e5m2, ties to even; infinite from 61440 on.
#[inline(always)]
pub(super) fn to_e5m2(value: f32) -> u8 {
    /// 65536, written as infinity.
    const INFINITE: u32 = 143 << 23;
    /// 2^-14, the smallest normal value.
    const NORMAL: u32 = 113 << 23;
    /// The last bit of a sum with 2^7 is 2^-16, the smallest value.
    const MAGIC: f32 = 128.0;
    let bits = value.to_bits();
    let digits = (bits & 0x7fff_ffff).min(INFINITE);
    let tiny = (f32::from_bits(digits) + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits());
    let normal = digits
        .wrapping_sub(112 << 23)
        .wrapping_add(0xf_ffff + (digits >> 21 & 1))
        >> 21;
    let code = if digits < NORMAL { tiny } else { normal };
    let code = if value.is_nan() { 0x7f } else { code };
    (bits >> 24 & 0x80 | code) as u8
}

#[cfg(test)]
mod tests {
    use kontext_fixtures::Fixture;

    use super::*;

    #[test]
    fn all_codes_have_the_bits_that_torch_gives_them() {
        let fixture = Fixture::open("quant.safetensors");
        let (e4m3, e5m2) = (fixture.words("F8_E4M3.bits"), fixture.words("F8_E5M2.bits"));
        for code in 0..=u8::MAX {
            assert_eq!(from_e4m3(code).to_bits(), e4m3[code as usize], "{code:#x}");
            assert_eq!(from_e5m2(code).to_bits(), e5m2[code as usize], "{code:#x}");
        }
    }

    #[test]
    fn rounding_is_that_of_torch_at_and_beside_every_midpoint() {
        let fixture = Fixture::open("quant.safetensors");
        for (name, round) in [("F8_E4M3", to_e4m3 as fn(f32) -> u8), ("F8_E5M2", to_e5m2)] {
            let (values, codes) = (
                fixture.words(&format!("{name}.rounds")),
                fixture.bytes(&format!("{name}.rounded")),
            );
            assert!(values.len() > 500 && values.len() == codes.len());
            for (bits, code) in values.into_iter().zip(codes) {
                assert_eq!(round(f32::from_bits(bits)), code, "{name}: {bits:#x}");
            }
        }
    }

    #[test]
    fn e4m3_saturates_and_e5m2_overflows() {
        assert_eq!(
            (to_e4m3(1e9), to_e4m3(f32::NEG_INFINITY), to_e4m3(f32::NAN)),
            (0x7e, 0xfe, 0x7f)
        );
        assert_eq!((to_e5m2(57344.0), to_e5m2(61440.0), to_e5m2(-1e9)), (0x7b, 0x7c, 0xfc));
    }
}
