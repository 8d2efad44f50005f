//! bitsandbytes' two 4-bit formats, as tables of the pairs that a byte encodes.
//!
//! Source: bitsandbytes-foundation/bitsandbytes `functional.py`, `get_4bit_type`; the high half of a byte
//! comes first (`backends/default/ops.py`, `quantize_4bit`).

/// The values of both codes of each byte, the high half first.
type Pairs = [[f32; 2]; 256];

/// NF4: quantiles of the normal distribution, divided by the largest.
pub static NF4: Pairs = pairs([
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
]);

/// FP4: small floats, divided by the largest, 12; both zeros are positive.
pub static FP4: Pairs = {
    const SIZES: [f32; 8] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut levels = [0.0; 16];
    let mut code = 1;
    while code < 8 {
        levels[code] = SIZES[code] / 12.0;
        levels[code + 8] = -levels[code];
        code += 1;
    }
    pairs(levels)
};

const fn pairs(levels: [f32; 16]) -> Pairs {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [levels[byte >> 4], levels[byte & 15]];
        byte += 1;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use kontext_fixtures::Fixture;

    use super::super::{Format, Packed, Scale};

    #[test]
    fn both_unpack_to_the_bits_of_bitsandbytes() {
        let fixture = Fixture::open("quant.safetensors");
        for format in [Format::Nf4, Format::Fp4] {
            let part = |what: &str| format!("{}.{what}", format.name());
            let (packed, expected) = (fixture.bytes(&part("packed")), fixture.floats(&part("values")));
            let absmax = fixture.floats(&part("absmax"));
            let columns = 48;
            let rows = expected.len() / columns;
            let scale = Scale::Blocks {
                size: 64,
                values: &absmax,
            };
            let packed = Packed::new(&packed, format, rows, columns, scale).unwrap();
            let mut out = vec![0.0_f32; expected.len()];
            packed.unpack(0..rows, 0..columns, &mut out).unwrap();
            assert!(
                out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{}",
                format.name()
            );
        }
    }
}
