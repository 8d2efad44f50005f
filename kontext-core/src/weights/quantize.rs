//! Packing the weights of linear layers as they are read.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{Factors, Recipe, Weights};
use crate::nn::{Bytes, PackedMatrix, PackedRows};
use crate::quant::{Format, pack};
use crate::{Error, Result};

/// What the weights of linear layers are packed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantize {
    /// 8-bit floats (e4m3) with one factor for each layer, as ComfyUI's scaled fp8 files have them.
    Fp8,
    /// Bytes with a factor for each row, as bitsandbytes has them.
    Int8,
    /// GGUF's 8 bits: 8.5 bits an element.
    Q8_0,
    /// GGUF's 5 bits with an offset: 6 bits an element.
    Q5_1,
    /// GGUF's 5 bits: 5.5 bits an element.
    Q5_0,
    /// GGUF's 4 bits with an offset: 5 bits an element.
    Q4_1,
    /// GGUF's 4 bits: 4.5 bits an element.
    Q4_0,
}

impl Quantize {
    /// All of them, from more bits to fewer.
    pub const ALL: [Self; 7] = [
        Self::Q8_0,
        Self::Fp8,
        Self::Int8,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_1,
        Self::Q4_0,
    ];
    /// The largest e4m3.
    const LARGEST: f64 = 448.0;

    /// How the elements are stored.
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

    /// Packs a matrix [out, in] of any floating kind: its bytes, and the factors beside them (one for fp8, one for
    /// each row for int8, none for the others).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the columns are no whole number of blocks or the tensor is no matrix.
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

    /// Whether a matrix with so many columns can be packed.
    #[must_use]
    pub fn fits(self, columns: i64) -> bool {
        columns > 0 && columns.unsigned_abs().is_multiple_of(self.format().block() as u64)
    }

    pub(super) fn matrix(self, matrix: &Tensor) -> Result<PackedMatrix> {
        let (rows, columns) = matrix.size2()?;
        let (bytes, factors) = self.pack(matrix)?;
        let factors = match (self, factors.as_slice()) {
            (Self::Fp8, [factor]) => Factors::All(*factor),
            (Self::Int8, _) => Factors::Rows(factors),
            _ => Factors::None,
        };
        let (rows, columns) = (rows.unsigned_abs() as usize, columns.unsigned_abs() as usize);
        Ok(PackedMatrix {
            bytes: Bytes::Held(bytes),
            format: self.format(),
            rows,
            columns,
            factors,
        })
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

impl Weights {
    /// The weights of linear layers are packed as they are read, if they are not packed already and their columns
    /// are whole blocks; only one layer is wide at a time. Default: as they are stored.
    #[must_use]
    pub fn quantized(self, to: Option<Quantize>) -> Self {
        Self { quantize: to, ..self }
    }

    /// The rows of a recipe, packed.
    pub(super) fn packed_now(&self, to: Quantize, recipe: &Recipe, shape: [i64; 2]) -> Result<PackedRows> {
        let pack = |name: &String| Ok(Arc::new(to.matrix(&self.read(name)?)?));
        let rows = PackedRows::new(recipe.names().iter().map(pack).collect::<Result<_>>()?, self.device)?;
        let rows = if matches!(recipe, Recipe::SwapHalves(_)) {
            rows.halves_swapped()
        } else {
            rows
        };
        if rows.size() == shape {
            Ok(rows)
        } else {
            Err(self.wrong_shape(recipe, &shape, &rows.size()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Linear;
    use crate::noise;

    fn draw(shape: &[i64], seed: u64) -> Tensor {
        noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
    }

    #[test]
    fn a_layer_packed_as_it_is_read_is_near_the_plain_one() {
        let weights = || Weights::from_tensors([("a.weight".to_owned(), draw(&[96, 64], 1))]);
        let x = draw(&[5, 64], 2);
        let of = |to| {
            Linear::without_bias(&weights().quantized(to).at("a"), 64, 96)
                .unwrap()
                .forward(&x)
                .unwrap()
        };
        let plain = of(None);
        // Twice the root mean square of the rounding of each format on normal values.
        let bounds = [0.01, 0.06, 0.02, 0.06, 0.08, 0.12, 0.16];
        for (to, bound) in Quantize::ALL.into_iter().zip(bounds) {
            let error = ((of(Some(to)) - &plain).norm() / plain.norm()).double_value(&[]);
            assert!(error > 1e-4 && error < bound, "{to}: {error}");
        }
    }

    #[test]
    fn columns_that_are_no_whole_blocks_stay_plain() {
        let weights =
            Weights::from_tensors([("a.weight".to_owned(), draw(&[8, 20], 1))]).quantized(Some(Quantize::Q4_0));
        let x = draw(&[5, 20], 2);
        let y = Linear::without_bias(&weights.at("a"), 20, 8)
            .unwrap()
            .forward(&x)
            .unwrap();
        assert!(y.allclose(&x.matmul(&draw(&[8, 20], 1).tr()), 1e-5, 1e-6, false));
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
