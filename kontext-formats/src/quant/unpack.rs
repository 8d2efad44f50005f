//! Unpacking of whole blocks to f32.

use super::wide::{self, Work};
use super::{Format, float8, half_floats, iq4, k, legacy, nf4};

impl Format {
    /// Unpacks whole blocks: as many as both `packed` and `out` hold; the rest of either is not touched.
    ///
    /// Bit for bit equal to gguf-py's `dequantize`, torch's conversion of fp8, and bitsandbytes' tables.
    pub fn unpack(self, packed: &[u8], out: &mut [f32]) {
        wide::run(Unpack {
            format: self,
            packed,
            out,
        });
    }
}

struct Unpack<'a> {
    format: Format,
    packed: &'a [u8],
    out: &'a mut [f32],
}

impl Work for Unpack<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { format, packed, out } = self;
        match format {
            Format::F32 => elements(packed, out, f32::from_le_bytes),
            Format::F16 => elements(packed, out, |bytes| half_floats::from_f16(u16::from_le_bytes(bytes))),
            Format::Bf16 => elements(packed, out, |bytes| half_floats::from_bf16(u16::from_le_bytes(bytes))),
            Format::Q4_0 => blocks(packed, out, legacy::q4_0),
            Format::Q4_1 => blocks(packed, out, legacy::q4_1),
            Format::Q5_0 => blocks(packed, out, legacy::q5_0),
            Format::Q5_1 => blocks(packed, out, legacy::q5_1),
            Format::Q8_0 => blocks(packed, out, legacy::q8_0),
            Format::Q2K => blocks(packed, out, k::q2),
            Format::Q3K => blocks(packed, out, k::q3),
            Format::Q4K => blocks(packed, out, k::q4),
            Format::Q5K => blocks(packed, out, k::q5),
            Format::Q6K => blocks(packed, out, k::q6),
            Format::Iq4Nl => blocks(packed, out, iq4::nl),
            Format::Iq4Xs => blocks(packed, out, iq4::xs),
            Format::F8E4M3 => elements(packed, out, |[code]| float8::from_e4m3(code)),
            Format::F8E5M2 => elements(packed, out, |[code]| float8::from_e5m2(code)),
            Format::Int8 => elements(packed, out, |[code]| f32::from(code as i8)),
            Format::Nf4 => blocks(packed, out, |[pair], out| *out = nf4::NF4[*pair as usize]),
            Format::Fp4 => blocks(packed, out, |[pair], out| *out = nf4::FP4[*pair as usize]),
        }
    }
}

#[inline(always)]
fn blocks<const B: usize, const N: usize>(packed: &[u8], out: &mut [f32], unpack: impl Fn(&[u8; B], &mut [f32; N])) {
    let (packed, _) = packed.as_chunks::<B>();
    let (out, _) = out.as_chunks_mut::<N>();
    for (block, out) in packed.iter().zip(out) {
        unpack(block, out);
    }
}

#[inline(always)]
fn elements<const B: usize>(packed: &[u8], out: &mut [f32], value: impl Fn([u8; B]) -> f32) {
    let (packed, _) = packed.as_chunks::<B>();
    for (bytes, out) in packed.iter().zip(out) {
        *out = value(*bytes);
    }
}

#[cfg(test)]
mod tests {
    use kontext_fixtures::Fixture;

    use super::*;

    #[test]
    fn every_format_of_a_gguf_file_unpacks_to_the_bits_of_gguf_py() {
        let fixture = Fixture::open("quant.safetensors");
        for format in Format::ALL.into_iter().filter(|format| format.gguf_type().is_some()) {
            let packed = fixture.bytes(&format!("{}.packed", format.name()));
            let expected = fixture.floats(&format!("{}.values", format.name()));
            let mut out = vec![0.0; expected.len()];
            assert_eq!(packed.len() / format.bytes() * format.block(), out.len());
            format.unpack(&packed, &mut out);
            assert!(
                out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{}",
                format.name()
            );
        }
    }

    #[test]
    fn wide_registers_change_no_bit() {
        let mut state = 1_u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for format in Format::ALL {
            let packed: Vec<u8> = (0..256 / format.block() * format.bytes() * 8).map(|_| byte()).collect();
            let (mut wide, mut plain) = (vec![0.0; 2048], vec![0.0; 2048]);
            format.unpack(&packed, &mut wide);
            Unpack {
                format,
                packed: &packed,
                out: &mut plain,
            }
            .run();
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(wide.iter().zip(&plain).all(same), "{}", format.name());
        }
    }

    #[test]
    fn a_cut_block_is_left_alone() {
        let mut out = [7.0; 40];
        Format::Q8_0.unpack(&[0; 60], &mut out);
        assert_eq!((out[31], out[32]), (0.0, 7.0));
        Format::Q4K.unpack(&[0; 144], &mut out);
        assert_eq!(out[39], 7.0);
    }
}
