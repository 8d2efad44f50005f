//! Scales of quantised weights, and the side tensors that hold them.
//!
//! Sources: bitsandbytes `functional.py`, `QuantState`, and `nn/modules.py`, `Linear8bitLt`.

use kontext_core::{Error, Result};
use tch::{Kind, Tensor};

use super::file::WeightFile;

/// 1/127, as in bitsandbytes.
const ONE_127TH: f32 = 7.874_016e-3;

/// Location of a tensor: the index of its file, and its name there.
pub(super) type Place = (usize, String);

/// The side tensors that hold the scales of a weight.
#[derive(Debug, Clone, Default)]
pub(super) enum SideTensors {
    #[default]
    None,
    /// One scale, or one per row.
    Scale(Place),
    /// The absmax of each row, stored as 127.
    RowAbsmax(Place),
    /// The absmax of each block.
    BlockAbsmax {
        absmax: Place,
        block: usize,
        nested: Option<Nested>,
    },
}

/// Block absmax in double quantisation: `map[code] * absmax[block] + offset`.
#[derive(Debug, Clone)]
pub(super) struct Nested {
    pub(super) absmax: Place,
    pub(super) map: Place,
    pub(super) block: usize,
    pub(super) offset: f32,
}

/// Scales in memory.
#[derive(Debug, Clone, Default)]
pub enum Scales {
    /// None: the elements are the values.
    #[default]
    None,
    /// One for the whole matrix.
    All(f32),
    /// One for each row.
    Rows(Vec<f32>),
    /// One for each `size` elements, counted over the flattened matrix.
    Blocks {
        /// Elements of a block; the last may have fewer.
        size: usize,
        /// The scales.
        values: Vec<f32>,
    },
}

impl SideTensors {
    /// Reads the scales.
    pub(super) fn read(&self, files: &[WeightFile]) -> Result<Scales> {
        Ok(match self {
            SideTensors::None => Scales::None,
            SideTensors::Scale(place) => match floats_of(files, place)?.as_slice() {
                [scale] => Scales::All(*scale),
                scales => Scales::Rows(scales.to_vec()),
            },
            SideTensors::RowAbsmax(place) => Scales::Rows(
                floats_of(files, place)?
                    .into_iter()
                    .map(|max| max * ONE_127TH)
                    .collect(),
            ),
            SideTensors::BlockAbsmax { absmax, block, nested } => {
                let values = match nested {
                    None => floats_of(files, absmax)?,
                    Some(nested) => nested.read(files, absmax)?,
                };
                Scales::Blocks { size: *block, values }
            }
        })
    }
}

impl Nested {
    fn read(&self, files: &[WeightFile], codes: &Place) -> Result<Vec<f32>> {
        let (map, maxima) = (floats_of(files, &self.map)?, floats_of(files, &self.absmax)?);
        let value = |(index, code): (usize, &f32)| {
            // Both are present: their counts were checked when the file was opened.
            let value_at = |values: &[f32], index: usize| values.get(index).copied().unwrap_or(f32::NAN);
            value_at(&map, *code as usize) * value_at(&maxima, index / self.block) + self.offset
        };
        Ok(floats_of(files, codes)?.iter().enumerate().map(value).collect())
    }
}

/// Reads a tensor's values as f32.
pub(super) fn floats_of(files: &[WeightFile], (file, name): &Place) -> Result<Vec<f32>> {
    let missing = || Error::bug(format!("scales in file {file} of a checkpoint that has fewer"));
    let values: Tensor = files.get(*file).ok_or_else(missing)?.read(name)?;
    let flat = values.f_to_kind(Kind::Float)?.f_reshape([-1])?;
    Vec::<f32>::try_from(&flat).map_err(|_| Error::Shape {
        tensor: "companion",
        expected: "[N]",
        got: values.size(),
    })
}
