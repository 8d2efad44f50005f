//! Quantising matrices when they are loaded or saved.

use kontext_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::quant::{Format, pack};
use super::{Scales, StoredMatrix};

/// Target format of a quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantize {
    /// 8-bit floats (e4m3) with one scale per matrix, as in ComfyUI's scaled fp8 files.
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
    /// Largest finite value of e4m3.
    const LARGEST: f64 = 448.0;

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
        let [_, columns] = <[i64; 2]>::try_from(matrix.size().as_slice()).map_err(|_| Error::Shape {
            tensor: "matrix to pack",
            expected: "[out, in]",
            got: matrix.size(),
        })?;
        let wide = matrix
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Float)?
            .f_contiguous()?;
        let largest = wide.f_abs()?.f_max()?.f_double_value(&[])?;
        let factor = if largest > 0.0 {
            (largest / Self::LARGEST) as f32
        } else {
            1.0
        };
        let wide = if self == Self::Fp8 {
            wide.f_div_scalar(f64::from(factor))?
        } else {
            wide
        };
        let values = Vec::<f32>::try_from(&wide.f_reshape([-1])?).map_err(|_| Error::Shape {
            tensor: "matrix to pack",
            expected: "[out, in]",
            got: matrix.size(),
        })?;
        let (data, rows) = pack(self.format(), &values, columns.unsigned_abs() as usize)?.into_parts();
        let one = if self == Self::Fp8 { vec![factor] } else { Vec::new() };
        Ok((data, rows.unwrap_or(one)))
    }

    /// Returns `true` if a matrix with this number of columns can be quantised.
    #[must_use]
    pub fn fits(self, columns: i64) -> bool {
        columns > 0 && columns.unsigned_abs().is_multiple_of(self.format().block() as u64)
    }

    /// Quantises a matrix [out, in] of any floating dtype into memory.
    ///
    /// # Errors
    /// Those of [`Quantize::pack`].
    pub fn matrix(self, matrix: &Tensor) -> Result<StoredMatrix> {
        let (bytes, scales) = self.pack(matrix)?;
        let (rows, columns) = matrix.size2()?;
        let scales = match (self, scales.as_slice()) {
            (Self::Fp8, [factor]) => Scales::All(*factor),
            (Self::Int8, _) => Scales::Rows(scales),
            _ => Scales::None,
        };
        let size = [rows.unsigned_abs() as usize, columns.unsigned_abs() as usize];
        Ok(StoredMatrix::new(bytes, self.format(), size, scales))
    }
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
    use super::*;

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
