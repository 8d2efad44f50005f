//! Quantising matrices when they are loaded or saved.

use kontext_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::quant::{Format, pack};
use super::{Scales, StoredMatrix};

/// Largest finite value of e4m3.
const LARGEST: f64 = 448.0;

/// Target format of a quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantize {
    /// 8-bit floats (e4m3), rounded to the nearest. In memory they have one scale per row ([`Quantize::matrix`]), with
    /// which GPUs multiply them; in files one per matrix ([`Quantize::pack`]), as ComfyUI's scaled fp8 has.
    Fp8,
    /// 8-bit integers with one scale per row, as in bitsandbytes.
    Int8,
    /// GGUF's Q8_0: 8.5 bits per element.
    Q8_0,
    /// GGUF's Q5_1, 5 bits with an offset: 6 bits per element.
    Q5_1,
    /// GGUF's Q5_0: 5.5 bits per element.
    Q5_0,
    /// GGUF's Q4_1, 4 bits with an offset: 5 bits per element.
    Q4_1,
    /// GGUF's Q4_0: 4.5 bits per element.
    Q4_0,
}

impl Quantize {
    /// All formats, from more bits to fewer.
    pub const ALL: [Self; 7] = [
        Self::Q8_0,
        Self::Fp8,
        Self::Int8,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_1,
        Self::Q4_0,
    ];

    /// Returns the storage format of the elements.
    #[must_use]
    pub fn format(self) -> Format {
        match self {
            Self::Fp8 => Format::F8E4M3,
            Self::Int8 => Format::Int8,
            Self::Q8_0 => Format::Q8_0,
            Self::Q5_1 => Format::Q5_1,
            Self::Q5_0 => Format::Q5_0,
            Self::Q4_1 => Format::Q4_1,
            Self::Q4_0 => Format::Q4_0,
        }
    }

    /// Quantises a matrix [out, in] of any floating dtype, and returns its bytes and scales: one for fp8, one per
    /// row for int8, none for the others, whose blocks contain them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the columns are not a multiple of the block; [`Error::Shape`] if the tensor is
    /// not a matrix.
    pub fn pack(self, matrix: &Tensor) -> Result<(Vec<u8>, Vec<f32>)> {
        let columns = columns_of(matrix)?;
        let wide = matrix
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Float)?
            .f_contiguous()?;
        let largest = wide.f_abs()?.f_max()?.f_double_value(&[])?;
        let factor = if largest > 0.0 { (largest / LARGEST) as f32 } else { 1.0 };
        let wide = if self == Self::Fp8 {
            wide.f_div_scalar(f64::from(factor))?
        } else {
            wide
        };
        let values = floats(&wide)?;
        let (data, rows) = pack(self.format(), &values, columns)?.into_parts();
        let one = if self == Self::Fp8 { vec![factor] } else { Vec::new() };
        Ok((data, rows.unwrap_or(one)))
    }

    /// Returns `true` if a matrix with this number of columns can be quantised.
    #[must_use]
    pub fn fits(self, columns: i64) -> bool {
        columns > 0 && columns.unsigned_abs().is_multiple_of(self.format().block() as u64)
    }

    /// Quantises a matrix [out, in] of any floating dtype into memory: as [`Quantize::pack`], but fp8 with one scale
    /// per row, its largest magnitude over 448.
    ///
    /// # Errors
    /// Those of [`Quantize::pack`].
    ///
    /// # Example
    /// ```
    /// use kontext_core::Tensor;
    /// use kontext_formats::Quantize;
    /// let matrix = Tensor::from_slice(&[1.0_f32, -448.0, 0.5, 0.25]).reshape([2, 2]);
    /// let stored = Quantize::Fp8.matrix(&matrix)?;
    /// assert_eq!(stored.dense(&[2, 2])?, matrix);
    /// // With one scale for both, the second row's values are rounded to its multiples.
    /// assert_eq!(Quantize::Fp8.pack(&matrix)?.1, [1.0]);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn matrix(self, matrix: &Tensor) -> Result<StoredMatrix> {
        let (bytes, scales) = match self {
            Self::Fp8 => fp8_rows(matrix)?,
            _ => self.pack(matrix)?,
        };
        let (rows, columns) = matrix.size2()?;
        let scales = match self {
            Self::Fp8 | Self::Int8 => Scales::Rows(scales),
            _ => Scales::None,
        };
        let size = [rows.unsigned_abs() as usize, columns.unsigned_abs() as usize];
        Ok(StoredMatrix::new(bytes, self.format(), size, scales))
    }
}

/// Rounds a matrix to e4m3 with one scale per row.
fn fp8_rows(matrix: &Tensor) -> Result<(Vec<u8>, Vec<f32>)> {
    let columns = columns_of(matrix)?;
    let wide = matrix.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let factors = wide.f_abs()?.f_amax([1], true)?.f_div_scalar(LARGEST)?;
    // Rows of zeros, or of values that f32 cannot divide.
    let factors = factors.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
    let values = floats(&wide.f_div(&factors)?)?;
    let (data, _) = pack(Format::F8E4M3, &values, columns)?.into_parts();
    Ok((data, floats(&factors)?))
}

/// Returns the columns of a matrix.
fn columns_of(matrix: &Tensor) -> Result<usize> {
    match matrix.size()[..] {
        [_, columns] => Ok(columns.unsigned_abs() as usize),
        _ => Err(Error::Shape {
            tensor: "matrix to pack",
            expected: "[out, in]",
            got: matrix.size(),
        }),
    }
}

/// Returns the elements of an f32 tensor, row by row.
fn floats(x: &Tensor) -> Result<Vec<f32>> {
    Vec::try_from(&x.f_reshape([-1])?).map_err(|_| Error::bug("f32 elements of another kind"))
}

impl std::fmt::Display for Quantize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl std::str::FromStr for Quantize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = || Self::ALL.map(|to| to.to_string()).join(", ");
        let found = Self::ALL.into_iter().find(|to| to.to_string() == text.to_lowercase());
        found.ok_or_else(|| Error::invalid("quantisation", format!("one of {}", all()), text))
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::noise;

    use super::*;

    #[test]
    fn a_row_in_fp8_has_the_codes_of_torch_by_its_largest_magnitude() {
        let sizes = Tensor::from_slice(&[1e-6_f32, 1.0, 3e4, 0.0]).reshape([4, 1]);
        let matrix = noise::randn(&[4, 96], 5, Kind::Float, Device::Cpu).unwrap() * sizes;
        let stored = Quantize::Fp8.matrix(&matrix).unwrap();
        let factors = (matrix.abs().amax([1], true) / LARGEST).clamp_min(f64::from(f32::MIN_POSITIVE));
        let codes = (&matrix / &factors).to_kind(Kind::Float8e4m3fn).view_dtype(Kind::Uint8);
        assert_eq!(Tensor::from_slice(stored.bytes()).reshape([4, 96]), codes);
        let dense = stored.dense(&[4, 96]).unwrap();
        assert!(dense.equal(&(codes.view_dtype(Kind::Float8e4m3fn).to_kind(Kind::Float) * &factors)));
        // Within a 16th of each value, or half a step of 2^-9 below the smallest normal number.
        let bound = (matrix.abs() / 16.0).maximum(&(&factors * (0.5 / 512.0))) * (1.0 + 1e-5);
        assert_eq!(
            (dense - matrix).abs().less_equal_tensor(&bound).all().int64_value(&[]),
            1
        );
    }

    #[test]
    fn a_file_has_one_factor_for_a_matrix_in_fp8() {
        let matrix = noise::randn(&[4, 96], 5, Kind::Float, Device::Cpu).unwrap();
        let (bytes, factors) = Quantize::Fp8.pack(&matrix).unwrap();
        let largest = (matrix.abs().max().double_value(&[]) / LARGEST) as f32;
        assert_eq!((bytes.len(), factors), (4 * 96, vec![largest]));
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for to in Quantize::ALL {
            assert_eq!(to.to_string().parse::<Quantize>().unwrap(), to);
        }
        assert!(
            "q3".parse::<Quantize>()
                .unwrap_err()
                .to_string()
                .contains("q8_0, fp8, int8")
        );
    }
}
