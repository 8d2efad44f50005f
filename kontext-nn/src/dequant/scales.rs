//! Scales of packed matrices on a device.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use kontext_core::Result;
use kontext_formats::quant::{Packed, Scale};

/// Scales of a matrix [R, C] in f32.
#[derive(Debug)]
pub(super) enum DeviceScales {
    None,
    /// One [1, 1], or one per row [R, 1].
    Rows(Tensor),
    /// [R, C / size]: one per `size` elements of a row.
    Groups {
        size: usize,
        values: Tensor,
    },
    /// \[N\]: one per `size` elements, counted over consecutive rows; `cut` elements of the first block
    /// precede the matrix.
    Flat {
        size: usize,
        cut: usize,
        values: Tensor,
    },
}

/// Returns the elements per block of a matrix's scales.
pub(super) fn block(matrix: &Packed<'_>) -> Option<usize> {
    if let Scale::Blocks { size, .. } = matrix.scale() {
        Some(size)
    } else {
        None
    }
}

impl DeviceScales {
    /// Copies the scales of some rows and columns, which are on block boundaries.
    pub(super) fn copy(
        matrix: &Packed<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        device: Device,
        send: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let all = matrix.size()[1];
        Ok(match matrix.scale() {
            Scale::None => DeviceScales::None,
            Scale::All(scale) => DeviceScales::Rows(Tensor::f_full([1, 1], f64::from(scale), (Kind::Float, device))?),
            Scale::Rows(values) => DeviceScales::Rows(send(&Tensor::f_from_slice(&values[rows])?.f_unsqueeze(1)?)?),
            Scale::Blocks { size, values } if all.is_multiple_of(size) => {
                let (line, part) = (all / size, columns.start / size..columns.end / size);
                let lines = values[rows.start * line..rows.end * line].chunks(line.max(1));
                let values: Vec<f32> = lines.flat_map(|line| &line[part.clone()]).copied().collect();
                let shape = [rows.len() as i64, part.len() as i64];
                DeviceScales::Groups {
                    size,
                    values: send(&Tensor::f_from_slice(&values)?.f_reshape(shape)?)?,
                }
            }
            Scale::Blocks { size, values } => {
                let (first, end) = (rows.start * all, rows.end * all);
                let values = Tensor::f_from_slice(&values[first / size..end.div_ceil(size)])?;
                DeviceScales::Flat {
                    size,
                    cut: first % size,
                    values: send(&values)?,
                }
            }
        })
    }

    /// Returns the elements per block of scales.
    pub(super) fn block(&self) -> Option<usize> {
        match self {
            DeviceScales::None | DeviceScales::Rows(_) => None,
            DeviceScales::Groups { size, .. } | DeviceScales::Flat { size, .. } => Some(*size),
        }
    }

    /// Returns the scales of some rows and columns on block boundaries: [R or 1, G], each for as many
    /// columns.
    pub(super) fn part(&self, rows: &Range<usize>, columns: &Range<usize>, all: usize) -> Result<Option<Tensor>> {
        let (start, count) = (rows.start as i64, rows.len() as i64);
        Ok(Some(match self {
            DeviceScales::None => return Ok(None),
            DeviceScales::Rows(values) if values.size() == [1, 1] => values.shallow_clone(),
            DeviceScales::Rows(values) => values.f_narrow(0, start, count)?,
            DeviceScales::Groups { size, values } => {
                let (first, groups) = ((columns.start / size) as i64, (columns.len() / size) as i64);
                values.f_narrow(0, start, count)?.f_narrow(1, first, groups)?
            }
            DeviceScales::Flat { size, cut, values } => {
                let rows = Tensor::f_arange_start(start, start + count, (Kind::Int64, values.device()))?;
                by_element(values, *size, *cut, &rows, all)?
            }
        }))
    }

    /// Gathers the scales of the rows at these indices [N].
    pub(super) fn rows_at(&self, indices: &Tensor, columns: usize) -> Result<Self> {
        Ok(match self {
            DeviceScales::None => DeviceScales::None,
            DeviceScales::Rows(values) if values.size() == [1, 1] => DeviceScales::Rows(values.shallow_clone()),
            DeviceScales::Rows(values) => DeviceScales::Rows(values.f_index_select(0, indices)?),
            DeviceScales::Groups { size, values } => DeviceScales::Groups {
                size: *size,
                values: values.f_index_select(0, indices)?,
            },
            DeviceScales::Flat { size, cut, values } => DeviceScales::Groups {
                size: 1,
                values: by_element(values, *size, *cut, indices, columns)?,
            },
        })
    }
}

/// Returns the scale of each element of some rows: [N, columns].
fn by_element(values: &Tensor, size: usize, cut: usize, rows: &Tensor, columns: usize) -> Result<Tensor> {
    let first = rows
        .f_mul_scalar(columns as i64)?
        .f_add_scalar(cut as i64)?
        .f_unsqueeze(1)?;
    let at = Tensor::f_arange(columns as i64, (Kind::Int64, rows.device()))?.f_add(&first)?;
    let blocks = at.f_floor_divide_scalar(size as i64)?;
    Ok(values
        .f_index_select(0, &blocks.f_flatten(0, -1)?)?
        .f_reshape(at.size())?)
}
