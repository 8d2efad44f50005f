//! Source and result at one resolution, and how alike their cells are under a motion.

use std::ops::Range;

use kontext_core::Result;
use rayon::prelude::*;

use super::cell::{Cell, Sums};
use super::motion::Motion;
use super::plane::{Kept, Plane};

/// Pixels of a cell on each axis: enough to tell texture from chance, and small enough to lie within an object.
const CELL: usize = 8;
/// The texture of a level: values without the means of 9 by 9 pixels.
const RADIUS: usize = 4;

/// Source and result at one resolution.
pub(super) struct Level {
    source: Plane,
    result: Plane,
    kept: Option<Kept>,
    /// The image's centre in pixels of this level, from the corner.
    center: [f64; 2],
    /// Half the image's diagonal in pixels of this level.
    pub radius: f64,
    /// Pixels of the image in one of this level.
    pub factor: f64,
}

impl Level {
    /// Returns a level of two planes of luma, in pixels that are `factor` times those of the image with these sides.
    pub(super) fn new(luma: [&Plane; 2], kept: Option<&Kept>, sides: [f64; 2], factor: f64) -> Result<Self> {
        let [width, height] = sides.map(|side| side / factor);
        Ok(Self {
            source: luma[0].blurred()?.texture(RADIUS)?,
            result: luma[1].blurred()?.texture(RADIUS)?,
            kept: kept.cloned(),
            center: [width / 2.0, height / 2.0],
            radius: width.hypot(height) / 2.0,
            factor,
        })
    }

    /// Compares the cells of the source with the result's pixels at their places after `motion`, in pixels of this
    /// level. Cells without texture in the source are left out.
    ///
    /// Cells form two grids, the second half a cell from the first: a blurred edge seems to move towards the middle of
    /// its cell, and away from it in the other grid.
    pub(super) fn cells(&self, motion: Motion) -> Vec<Cell> {
        let rows = self.source.height / CELL;
        let grids = [0, CELL / 2].into_par_iter();
        let rows = grids.flat_map(|start| (0..rows).into_par_iter().map(move |row| (start, row)));
        rows.flat_map_iter(|(start, row)| self.row_of_cells::<true>(start, row, motion))
            .collect()
    }

    /// Computes how well a motion explains the result: the sum of the likeness of one grid's cells.
    pub(super) fn score(&self, motion: Motion) -> f64 {
        let rows = 0..self.source.height / CELL;
        let cells = rows.flat_map(|row| self.row_of_cells::<false>(0, row, motion));
        cells.map(|cell| cell.likeness()).sum()
    }

    fn row_of_cells<const GRADIENTS: bool>(&self, start: usize, row: usize, motion: Motion) -> Vec<Cell> {
        let mut cells = vec![Sums::default(); self.source.width / CELL];
        for y in inner(start, row, self.source.height) {
            self.add_row::<GRADIENTS>(start, y, motion, &mut cells);
        }
        cells.iter().filter_map(Sums::cell).collect()
    }

    /// Adds the pixels of a row to the sums of their cells.
    fn add_row<const GRADIENTS: bool>(&self, start: usize, y: usize, motion: Motion, cells: &mut [Sums]) {
        let place = |at: usize, axis: usize| {
            let center = self.center[axis];
            motion.scale * (at as f64 + 0.5 - center) + motion.shift[axis] + center - 0.5
        };
        let Some((row, down)) = whole_and_rest(place(y, 1), self.result.height) else {
            return;
        };
        let [upper, lower] = [row, row + 1].map(|row| self.result.row(row));
        let [above, here, below] = [y - 1, y, y + 1].map(|row| self.source.row(row));
        let kept = self.kept.as_ref().map(|kept| kept.row(y));
        let from_center = (y as f64 + 0.5 - self.center[1]) / self.radius;
        for (column, sums) in cells.iter_mut().enumerate() {
            for x in inner(start, column, self.source.width) {
                if kept.is_some_and(|kept| kept[x] == 0.0) {
                    continue;
                }
                let Some((at, right)) = whole_and_rest(place(x, 0), self.result.width) else {
                    continue;
                };
                let [upper, lower] = [upper, lower].map(|row| row[at] + right * (row[at + 1] - row[at]));
                let result = upper + down * (lower - upper);
                sums.add(here[x], result);
                if GRADIENTS {
                    let (across, down) = ((here[x + 1] - here[x - 1]) / 2.0, (below[x] - above[x]) / 2.0);
                    let outwards = (x as f64 + 0.5 - self.center[0]) / self.radius;
                    let zoom = across * outwards as f32 + down * from_center as f32;
                    let curvature = here[x - 1] + here[x + 1] + above[x] + below[x] - 4.0 * here[x];
                    sums.add_derivatives([across, down, zoom], curvature, here[x], result);
                }
            }
        }
    }
}

/// Returns the pixels of a cell that have neighbours on both sides, in a grid from `start`.
fn inner(start: usize, cell: usize, side: usize) -> Range<usize> {
    let first = start + cell * CELL;
    first.max(1)..(first + CELL).min(side - 1)
}

/// Returns the pixel before a place and the distance to it, if the next one is inside, too.
fn whole_and_rest(place: f64, side: usize) -> Option<(usize, f32)> {
    let whole = place.floor();
    (whole >= 0.0 && whole + 1.0 < side as f64).then_some((whole as usize, (place - whole) as f32))
}
