//! Packing of a matrix for storage.

use half::f16;
use kontext_core::{Error, Result, threads};
use rayon::prelude::*;

use super::half_floats::to_bf16;
use super::wide::{self, Work};
use super::{Format, Packed, Scale, float8, pack_blocks};

/// Elements of a thread's piece.
const PIECE: usize = 1 << 15;

/// An owned packed matrix.
#[derive(Clone)]
pub struct PackedVec {
    data: Vec<u8>,
    format: Format,
    rows: usize,
    columns: usize,
    factors: Option<Vec<f32>>,
}

impl std::fmt::Debug for PackedVec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedVec({} [{}, {}])", self.format.name(), self.rows, self.columns)
    }
}

impl PackedVec {
    /// Returns the bytes, row after row.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Returns the scale of each row, for [`Format::Int8`] only: its largest magnitude over 127.
    #[must_use]
    pub fn factors(&self) -> Option<&[f32]> {
        self.factors.as_deref()
    }

    /// Returns a view of the matrix, for unpacking.
    ///
    /// # Errors
    /// None in practice: the view is checked like any [`Packed`].
    pub fn view(&self) -> Result<Packed<'_>> {
        let scale = self.factors().map_or(Scale::None, Scale::Rows);
        Packed::new(&self.data, self.format, self.rows, self.columns, scale)
    }

    /// Returns the bytes, and the scales as in [`PackedVec::factors`].
    #[must_use]
    pub fn into_parts(self) -> (Vec<u8>, Option<Vec<f32>>) {
        (self.data, self.factors)
    }
}

/// Packs a matrix with rows of `columns` elements, on all threads of rayon's pool.
///
/// Supports F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, F8_E4M3, F8_E5M2 and INT8. Floats round to nearest,
/// ties to even; e4m3 saturates at 448, so larger weights need a scale. The Q formats give the bytes of
/// gguf-py's `quantize` (except for the sign of a zero minimum, which numpy leaves open), INT8 those of
/// bitsandbytes' `int8_vectorwise_quant`. Values should be finite: a NaN spoils its block.
///
/// # Errors
/// [`Error::InvalidArgument`] for any other format, columns that are not a whole number of blocks, or values
/// that do not form whole rows; [`Error::Thread`] if the system refuses the threads.
///
/// # Example
/// ```
/// use kontext_formats::quant::{Format, pack};
/// let packed = pack(Format::Int8, &[1.0, -2.0, 0.0, 4.0], 2)?;
/// assert_eq!(packed.data(), [64, 129, 0, 127]); // 129 is -127
/// assert_eq!(packed.factors(), Some(&[2.0 / 127.0, 4.0 / 127.0][..]));
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn pack(format: Format, values: &[f32], columns: usize) -> Result<PackedVec> {
    if !can_pack(format) {
        return Err(Error::invalid(
            "format to pack to",
            "a float, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or INT8",
            format.name(),
        ));
    }
    let Some(row_bytes) = format.row_bytes(columns).filter(|&bytes| bytes > 0) else {
        let expected = format!(
            "a positive multiple of {}, the block of {}",
            format.block(),
            format.name()
        );
        return Err(Error::invalid("columns to pack", expected, columns));
    };
    if !values.len().is_multiple_of(columns) {
        return Err(Error::invalid(
            "values to pack",
            format!("rows of {columns}"),
            values.len(),
        ));
    }
    let rows = values.len() / columns;
    threads::start()?;
    let mut data = vec![0; rows * row_bytes];
    let together = (PIECE / columns).max(1);
    let pieces = data
        .par_chunks_mut(together * row_bytes)
        .zip(values.par_chunks(together * columns));
    let factors = if format == Format::Int8 {
        let mut factors = vec![0.0; rows];
        pieces
            .zip(factors.par_chunks_mut(together))
            .for_each(|((data, values), factors)| {
                wide::run(Rows {
                    values,
                    columns,
                    data,
                    factors,
                });
            });
        Some(factors)
    } else {
        pieces.for_each(|(data, values)| wide::run(Blocks { format, values, data }));
        None
    };
    Ok(PackedVec {
        data,
        format,
        rows,
        columns,
        factors,
    })
}

fn can_pack(format: Format) -> bool {
    use Format::{Bf16, F8E4M3, F8E5M2, F16, F32, Int8, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    matches!(
        format,
        F32 | F16 | Bf16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | F8E4M3 | F8E5M2 | Int8
    )
}

struct Blocks<'a> {
    format: Format,
    values: &'a [f32],
    data: &'a mut [u8],
}

impl Work for Blocks<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { format, values, data } = self;
        match format {
            Format::F32 => elements(values, data, f32::to_le_bytes),
            Format::F16 => elements(values, data, |value| f16::from_f32(value).to_le_bytes()),
            Format::Bf16 => elements(values, data, |value| to_bf16(value).to_le_bytes()),
            Format::F8E4M3 => elements(values, data, |value| [float8::to_e4m3(value)]),
            Format::F8E5M2 => elements(values, data, |value| [float8::to_e5m2(value)]),
            Format::Q4_0 => blocks(values, data, pack_blocks::q4_0),
            Format::Q4_1 => blocks(values, data, pack_blocks::q4_1),
            Format::Q5_0 => blocks(values, data, pack_blocks::q5_0),
            Format::Q5_1 => blocks(values, data, pack_blocks::q5_1),
            Format::Q8_0 => blocks(values, data, pack_blocks::q8_0),
            // Refused on entry.
            _ => {}
        }
    }
}

#[inline(always)]
fn blocks<const N: usize, const B: usize>(values: &[f32], data: &mut [u8], pack: impl Fn(&[f32; N], &mut [u8; B])) {
    let (values, _) = values.as_chunks::<N>();
    let (data, _) = data.as_chunks_mut::<B>();
    for (values, out) in values.iter().zip(data) {
        pack(values, out);
    }
}

#[inline(always)]
fn elements<const B: usize>(values: &[f32], data: &mut [u8], bytes: impl Fn(f32) -> [u8; B]) {
    let (data, _) = data.as_chunks_mut::<B>();
    for (value, out) in values.iter().zip(data) {
        *out = bytes(*value);
    }
}

/// Packing of whole rows as signed bytes.
struct Rows<'a> {
    values: &'a [f32],
    columns: usize,
    data: &'a mut [u8],
    factors: &'a mut [f32],
}

impl Work for Rows<'_> {
    #[inline(always)]
    fn run(self) {
        let rows = self
            .values
            .chunks_exact(self.columns)
            .zip(self.data.chunks_exact_mut(self.columns));
        for ((values, data), factor) in rows.zip(self.factors) {
            let largest = pack_blocks::magnitude(values);
            *factor = largest / 127.0;
            // torch multiplies by the reciprocal for Python's `127 / x`: the last bit decides ties.
            let steps = if largest == 0.0 { 0.0 } else { largest.recip() * 127.0 };
            for (out, value) in data.iter_mut().zip(values) {
                *out = (value * steps).round_ties_even() as i32 as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kontext_fixtures::Fixture;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn q_formats_pack_to_the_bytes_of_gguf_py() {
        let fixture = Fixture::open("quant.safetensors");
        let values = fixture.floats("pack.values");
        for format in [
            Format::F16,
            Format::Bf16,
            Format::Q4_0,
            Format::Q4_1,
            Format::Q5_0,
            Format::Q5_1,
            Format::Q8_0,
        ] {
            let expected = fixture.bytes(&format!("{}.pack", format.name()));
            let packed = pack(format, &values, 64).unwrap();
            let wrong = packed.data().iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(
                (packed.data().len(), wrong),
                (expected.len(), None),
                "{}",
                format.name()
            );
        }
    }

    #[test]
    fn int8_packs_to_the_bytes_of_bitsandbytes() {
        let fixture = Fixture::open("quant.safetensors");
        let packed = pack(Format::Int8, &fixture.floats("pack.values"), 64).unwrap();
        assert_eq!(packed.data(), fixture.bytes("INT8.pack"));
        let maxima = fixture.floats("INT8.maxima");
        assert!(
            packed
                .factors()
                .unwrap()
                .iter()
                .zip(maxima)
                .all(|(factor, max)| *factor == max / 127.0)
        );
    }

    #[test]
    fn int8_breaks_a_tie_as_bitsandbytes_does() {
        // -66.5 by the reciprocal, -66.50001 by 127 over the maximum.
        let packed = pack(Format::Int8, &[0.211_713_25, -0.110_857_74], 2).unwrap();
        assert_eq!(
            packed.data().iter().map(|&code| code as i8).collect::<Vec<_>>(),
            [127, -66]
        );
    }

    /// Returns the largest error of an element within a block whose largest magnitude is 1, without the error
    /// of the scales.
    fn bound(format: Format) -> f32 {
        match format {
            Format::F32 => 0.0,
            Format::F16 => 0.5_f32.powi(11),
            Format::Bf16 => 0.5_f32.powi(8),
            // One side of the range is one step short.
            Format::Q4_0 => 1.0 / 8.0,
            Format::Q5_0 => 1.0 / 16.0,
            // The range is at most 2.
            Format::Q4_1 => 1.0 / 15.0,
            Format::Q5_1 => 1.0 / 31.0,
            Format::F8E4M3 => 1.0 / 16.0,
            Format::F8E5M2 => 1.0 / 8.0,
            _ => 0.5 / 127.0,
        }
    }

    /// Returns the additional error from the f16 of a block's scale and minimum, each rounded by 2^-11 of
    /// itself: a scale times its largest code is at most the range, which is 2 if there is a minimum.
    fn rounded_factors(format: Format) -> f32 {
        let half = 0.5_f32.powi(11);
        match format {
            Format::Q4_1 | Format::Q5_1 => 3.0 * half,
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => half,
            _ => 0.0,
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back_within_half_a_step(
            values in proptest::collection::vec(-1.0_f32..1.0, 96),
            size in 1.0_f32..100.0,
        ) {
            let values: Vec<f32> = values.iter().map(|value| value * size).collect();
            for format in Format::ALL.into_iter().filter(|format| can_pack(*format)) {
                let packed = pack(format, &values, 96).unwrap();
                let mut out = vec![0.0_f32; 96];
                packed.view().unwrap().unpack(0..1, 0..96, &mut out).unwrap();
                // Half of its smallest value.
                let tiny = if format == Format::F8E4M3 { 0.5_f32.powi(10) } else { 1e-5 };
                for (block, out) in values.chunks(32).zip(out.chunks(32)) {
                    let whole = if format == Format::Int8 { &values[..] } else { block };
                    let largest = whole.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                    let bound = largest * (bound(format) + rounded_factors(format)) + tiny;
                    for (a, b) in block.iter().zip(out) {
                        prop_assert!((a - b).abs() <= bound * 1.0001, "{} {a} {b} {largest}", format.name());
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_packed_is_named() {
        let say = |format, values: &[f32], columns| pack(format, values, columns).unwrap_err().to_string();
        assert!(say(Format::Q4K, &[0.0; 256], 256).ends_with("got Q4_K"));
        assert!(say(Format::Q8_0, &[0.0; 48], 48).contains("a positive multiple of 32"));
        assert!(say(Format::F32, &[0.0; 5], 2).contains("expected rows of 2, got 5"));
        assert!(say(Format::F32, &[], 0).contains("got 0"));
        assert!(pack(Format::Q8_0, &[], 32).unwrap().data().is_empty());
    }

    #[test]
    fn values_that_are_not_finite_do_no_more_than_spoil_their_block() {
        let values = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN_POSITIVE,
            1e-44,
            -0.0,
            1.0,
        ]
        .repeat(8);
        for format in Format::ALL.into_iter().filter(|format| can_pack(*format)) {
            assert!(pack(format, &values, 32).is_ok());
        }
    }
}
