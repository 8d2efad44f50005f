//! Packed matrices, and unpacking of any part of them.

use std::fmt;
use std::ops::Range;

use half::bf16;
use kontext_core::{Error, Result, threads};
use rayon::prelude::*;

use super::Format;
use super::half_floats::to_bf16;
use super::wide::{self, Work};

/// Elements unpacked at once: 4 kB, small enough to be scaled and written while in the L1 cache, and whole
/// blocks of every format.
const TILE: usize = 1024;
/// Elements of a thread's piece: some 30 microseconds of work, more than the handover costs.
const PIECE: usize = 1 << 16;

/// The scale of a packed matrix, by which its elements are multiplied when they are unpacked.
#[derive(Debug, Clone, Copy, Default)]
pub enum Scale<'a> {
    /// No scale.
    #[default]
    None,
    /// One scale for all elements.
    All(f32),
    /// One scale per row.
    Rows(&'a [f32]),
    /// One scale per `size` elements, counted over the flattened matrix; the last block may be shorter.
    Blocks {
        /// Elements per block.
        size: usize,
        /// The scales.
        values: &'a [f32],
    },
}

/// A matrix [rows, columns] stored row after row, each as whole blocks of a [`Format`].
///
/// # Example
/// ```
/// use kontext_formats::quant::{Format, Packed, Scale};
/// let bytes = [1_u8, 2, 3, 0xfc, 5, 6]; // [[1, 2, 3], [-4, 5, 6]]
/// let matrix = Packed::new(&bytes, Format::Int8, 2, 3, Scale::Rows(&[1.0, 0.5]))?;
/// let mut part = [0.0_f32; 4];
/// matrix.unpack(0..2, 0..2, &mut part)?;
/// assert_eq!(part, [1.0, 2.0, -2.0, 2.5]);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    data: &'a [u8],
    format: Format,
    rows: usize,
    columns: usize,
    row_bytes: usize,
    scale: Scale<'a>,
}

impl fmt::Debug for Packed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} [{}, {}])", self.format.name(), self.rows, self.columns)
    }
}

impl<'a> Packed<'a> {
    /// Creates a matrix over borrowed bytes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the columns are not a whole number of blocks, the bytes do not match the
    /// number of rows, or the number of scales is wrong.
    pub fn new(data: &'a [u8], format: Format, rows: usize, columns: usize, scale: Scale<'a>) -> Result<Self> {
        let Some(row_bytes) = format.row_bytes(columns) else {
            let expected = format!("a multiple of {}, the block of {}", format.block(), format.name());
            return Err(Error::invalid("columns of a packed matrix", expected, columns));
        };
        let sizes = row_bytes.checked_mul(rows).zip(columns.checked_mul(rows));
        let Some((_, elements)) = sizes.filter(|(bytes, _)| *bytes == data.len()) else {
            let expected = format!("{rows} rows of {row_bytes} bytes of {}", format.name());
            return Err(Error::invalid(
                "data of a packed matrix",
                expected,
                format!("{} bytes", data.len()),
            ));
        };
        let factors = match scale {
            Scale::None | Scale::All(_) => None,
            Scale::Rows(values) => Some((rows, values.len())),
            Scale::Blocks { size: 0, .. } => return Err(Error::invalid("block of factors", "at least 1 element", 0)),
            Scale::Blocks { size, values } => Some((elements.div_ceil(size), values.len())),
        };
        match factors {
            Some((expected, got)) if expected != got => Err(Error::invalid(
                "factors of a packed matrix",
                format!("{expected} of them"),
                got,
            )),
            _ => Ok(Self {
                data,
                format,
                rows,
                columns,
                row_bytes,
                scale,
            }),
        }
    }

    /// Returns the storage format of its elements.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The packed bytes.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The scales of its elements.
    #[must_use]
    pub fn scale(&self) -> Scale<'a> {
        self.scale
    }

    /// Returns the number of rows and columns.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Unpacks and scales some columns of some rows, row by row. Columns may begin and end within a block.
    ///
    /// Computes in f32 and rounds once at the end. Large parts use all threads of rayon's pool.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a range ends beyond the matrix, or the size of `out` differs from that
    /// of the part; [`Error::Thread`] if the system refuses the threads.
    pub fn unpack<T: Element>(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [T]) -> Result<()> {
        for (name, range, end) in [("rows", &rows, self.rows), ("columns", &columns, self.columns)] {
            if range.start > range.end || range.end > end {
                return Err(Error::invalid(
                    name,
                    format!("a range within 0..{end}"),
                    format!("{range:?}"),
                ));
            }
        }
        // No overflow: the product of the sides was computed in `new`.
        if rows.len() * columns.len() != out.len() {
            let expected = format!("{} x {} elements", rows.len(), columns.len());
            return Err(Error::invalid("output of a packed matrix", expected, out.len()));
        }
        let part = Part {
            matrix: self,
            first: [rows.start, columns.start],
            width: columns.len(),
        };
        if out.len() <= PIECE {
            part.unpack(0, out);
        } else {
            threads::start()?;
            out.par_chunks_mut(PIECE)
                .enumerate()
                .for_each(|(index, out)| part.unpack(index * PIECE, out));
        }
        Ok(())
    }
}

/// A part of a matrix, with its elements counted row by row.
struct Part<'a> {
    matrix: &'a Packed<'a>,
    first: [usize; 2],
    width: usize,
}

impl Part<'_> {
    /// Writes the elements from `start` on.
    fn unpack<T: Element>(&self, start: usize, out: &mut [T]) {
        let Packed {
            data,
            format,
            row_bytes,
            ..
        } = *self.matrix;
        let mut buffer = [0.0; TILE];
        let mut done = 0;
        while done < out.len() {
            let (down, right) = ((start + done) / self.width, (start + done) % self.width);
            let (row, column) = (self.first[0] + down, self.first[1] + right);
            let cut = column % format.block();
            let count = (TILE - cut).min(self.width - right).min(out.len() - done);
            let from = row * row_bytes + (column - cut) / format.block() * format.bytes();
            let blocks = (cut + count).div_ceil(format.block());
            format.unpack(&data[from..from + blocks * format.bytes()], &mut buffer);
            let values = &mut buffer[cut..cut + count];
            self.matrix.multiply(row, column, values);
            T::store(values, &mut out[done..done + count]);
            done += count;
        }
    }
}

impl Packed<'_> {
    /// Multiplies values of a row, from `column` on, by their scales.
    fn multiply(&self, row: usize, column: usize, values: &mut [f32]) {
        match self.scale {
            Scale::None => {}
            Scale::All(factor) => times(values, factor),
            Scale::Rows(factors) => times(values, factors[row]),
            Scale::Blocks { size, values: factors } => {
                let (mut at, mut rest) = (row * self.columns + column, values);
                while !rest.is_empty() {
                    let count = (size - at % size).min(rest.len());
                    let (block, others) = rest.split_at_mut(count);
                    times(block, factors[at / size]);
                    (at, rest) = (at + count, others);
                }
            }
        }
    }
}

fn times(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

/// An element type that matrices are unpacked to: f32 or bf16.
pub trait Element: Copy + Send + private::Sealed {
    /// Writes f32 values, rounded to nearest, ties to even. Both slices have the same length.
    #[doc(hidden)]
    fn store(values: &[f32], out: &mut [Self]);
}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    fn store(values: &[f32], out: &mut [Self]) {
        out.copy_from_slice(values);
    }
}

impl Element for bf16 {
    fn store(values: &[f32], out: &mut [Self]) {
        wide::run(Round { values, out });
    }
}

struct Round<'a> {
    values: &'a [f32],
    out: &'a mut [bf16],
}

impl Work for Round<'_> {
    #[inline(always)]
    fn run(self) {
        for (out, value) in self.out.iter_mut().zip(self.values) {
            *out = bf16::from_bits(to_bf16(*value));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(count: usize) -> Vec<u8> {
        // The upper byte of every f16 is small, so all values are finite.
        (0..count)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x3b)
            .collect()
    }

    fn whole(matrix: &Packed<'_>) -> Vec<f32> {
        let mut out = vec![0.0; matrix.rows * matrix.columns];
        matrix.unpack(0..matrix.rows, 0..matrix.columns, &mut out).unwrap();
        out
    }

    proptest! {
        #[test]
        fn a_part_is_the_same_part_of_the_whole(
            format in proptest::sample::select(Format::ALL.to_vec()),
            (rows, blocks) in (1..5_usize, 1..7_usize),
            (a, b, c, d) in (0..=1000_usize, 0..=1000_usize, 0..=1000_usize, 0..=1000_usize),
            size in 1..700_usize,
        ) {
            let columns = 256 * blocks;
            let data = bytes(rows * format.row_bytes(columns).unwrap());
            let factors: Vec<f32> = (0..(rows * columns).div_ceil(size)).map(|i| i as f32 + 0.5).collect();
            let scale = Scale::Blocks { size, values: &factors };
            let matrix = Packed::new(&data, format, rows, columns, scale).unwrap();
            let all = whole(&matrix);
            let range = |a: usize, b: usize, side: usize| a.min(b) * side / 1000..a.max(b) * side / 1000;
            let (down, across) = (range(a, b, rows), range(c, d, columns));
            let expected: Vec<f32> =
                down.clone().flat_map(|row| all[row * columns..][across.clone()].iter().copied()).collect();
            let mut part = vec![f32::NAN; expected.len()];
            matrix.unpack(down.clone(), across.clone(), &mut part).unwrap();
            prop_assert_eq!(&part, &expected);
            let mut rounded = vec![bf16::NAN; expected.len()];
            matrix.unpack(down, across, &mut rounded).unwrap();
            prop_assert!(rounded.iter().zip(expected).all(|(a, b)| *a == bf16::from_f32(b)));
        }
    }

    #[test]
    fn pieces_of_many_threads_meet_without_a_seam() {
        let (rows, columns) = (37, 4128);
        let data = bytes(rows * Format::Q8_0.row_bytes(columns).unwrap());
        let factors: Vec<f32> = (1..=rows).map(|row| row as f32).collect();
        let matrix = Packed::new(&data, Format::Q8_0, rows, columns, Scale::Rows(&factors)).unwrap();
        let mut out = vec![0.0; rows * 4000];
        matrix.unpack(0..rows, 101..4101, &mut out).unwrap();
        for (row, out) in out.chunks(4000).enumerate() {
            let mut alone = vec![0.0; columns];
            Format::Q8_0.unpack(&data[row * matrix.row_bytes..], &mut alone);
            assert!(out.iter().zip(&alone[101..]).all(|(a, b)| *a == b * factors[row]));
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let say = |data: &[u8], format, rows, columns, scale| {
            Packed::new(data, format, rows, columns, scale).unwrap_err().to_string()
        };
        assert_eq!(
            say(&[0; 34], Format::Q8_0, 1, 31, Scale::None),
            "invalid columns of a packed matrix: expected a multiple of 32, the block of Q8_0, got 31"
        );
        assert!(
            say(&[0; 34], Format::Q8_0, 2, 32, Scale::None).contains("expected 2 rows of 34 bytes of Q8_0, got 34")
        );
        assert!(say(&[0; 6], Format::Int8, 2, 3, Scale::Rows(&[1.0])).contains("expected 2 of them, got 1"));
        assert!(say(&[], Format::Q8_0, usize::MAX, 32, Scale::None).contains("got 0 bytes"));
        let none = Scale::Blocks { size: 0, values: &[] };
        assert!(say(&[0; 6], Format::Int8, 2, 3, none).contains("at least 1 element"));
        let matrix = Packed::new(&[0; 6], Format::Int8, 2, 3, Scale::None).unwrap();
        assert!(matrix.unpack(0..3, 0..3, &mut [0.0_f32; 9]).is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = matrix.unpack(1..0, 0..3, &mut [0.0_f32; 0]);
        assert!(reversed.is_err());
        assert!(matrix.unpack(0..2, 0..3, &mut [0.0_f32; 5]).is_err());
        assert!(matrix.unpack(0..0, 1..1, &mut [0.0_f32; 0]).is_ok());
    }
}
