//! Positions of tokens: (t, y, x), with t = 0 for the target and t >= 1 for references.

use kontext_core::{Device, Kind, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::Grid;

/// Placement of several reference images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum References {
    /// All at t = 1, next to or below one another on one plane; suits the published weights.
    ///
    /// Source: comfyanonymous/ComfyUI `comfy/ldm/flux/model.py`, `ref_latents_method` "offset".
    #[default]
    Offset,
    /// At t = 1, 2, 3, …, each from the origin.
    ///
    /// Source: as above, "index".
    Index,
    /// Concatenated side by side into one image before encoding.
    Stitch,
}

/// Position of the first token of a reference's grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Plane; 0 is the target's.
    pub t: i64,
    /// First row.
    pub y: i64,
    /// First column.
    pub x: i64,
}

/// Computes the origins of the reference grids.
#[must_use]
pub fn origins(grids: &[Grid], references: References) -> Vec<Origin> {
    let (mut height, mut width) = (0, 0);
    let place = |(index, grid): (usize, &Grid)| match references {
        References::Index => Origin {
            t: index as i64 + 1,
            y: 0,
            x: 0,
        },
        References::Offset | References::Stitch => {
            let right = grid.rows + height > grid.cols + width;
            let (y, x) = if right { (0, width) } else { (height, 0) };
            height = height.max(grid.rows + y);
            width = width.max(grid.cols + x);
            Origin { t: 1, y, x }
        }
    };
    grids.iter().enumerate().map(place).collect()
}

/// Returns the positions of a grid's tokens in row-major order: [rows * cols, 3] in f32.
///
/// f32 is exact for every position; bf16, which diffusers uses, is wrong from 257 on.
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn grid_ids(grid: Grid, origin: Origin) -> Result<Tensor> {
    let options = (Kind::Float, Device::Cpu);
    let t = Tensor::f_full([grid.rows, grid.cols], origin.t, options)?;
    let y = Tensor::f_arange_start(origin.y, origin.y + grid.rows, options)?.f_unsqueeze(1)?;
    let x = Tensor::f_arange_start(origin.x, origin.x + grid.cols, options)?.f_unsqueeze(0)?;
    let spread = |axis: &Tensor| axis.f_expand([grid.rows, grid.cols], false);
    Ok(Tensor::f_stack(&[t, spread(&y)?, spread(&x)?], -1)?.f_reshape([grid.tokens(), 3])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Grid = Grid { rows: 2, cols: 4 };
    const TALL: Grid = Grid { rows: 4, cols: 2 };

    #[test]
    fn offset_lays_references_where_the_plane_stays_squarest() {
        let at = |t, y, x| Origin { t, y, x };
        // Worked by hand from the rule: wide below wide, tall next to tall.
        assert_eq!(origins(&[WIDE, WIDE], References::Offset), [at(1, 0, 0), at(1, 2, 0)]);
        assert_eq!(origins(&[TALL, TALL], References::Offset), [at(1, 0, 0), at(1, 0, 2)]);
        assert_eq!(
            origins(&[WIDE, WIDE, WIDE], References::Offset),
            [at(1, 0, 0), at(1, 2, 0), at(1, 0, 4)][..2]
                .iter()
                .copied()
                .chain([at(1, 4, 0)])
                .collect::<Vec<_>>()
        );
        assert_eq!(origins(&[WIDE, TALL], References::Index), [at(1, 0, 0), at(2, 0, 0)]);
    }

    #[test]
    fn ids_count_rows_then_columns_from_their_origin() {
        let ids = grid_ids(Grid { rows: 2, cols: 2 }, Origin { t: 1, y: 5, x: 7 }).unwrap();
        let rows: Vec<Vec<f32>> = Vec::try_from(ids).unwrap();
        assert_eq!(
            rows,
            [[1.0, 5.0, 7.0], [1.0, 5.0, 8.0], [1.0, 6.0, 7.0], [1.0, 6.0, 8.0]]
        );
    }
}
