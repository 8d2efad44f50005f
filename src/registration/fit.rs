//! The motion that explains a result best: a coarse search, then Gauss-Newton steps at finer and finer levels.
//!
//! Source: Baker and Matthews, "Lucas-Kanade 20 Years On" (2004), sections 3.2 (inverse compositional) and of part 2 the
//! weights; Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization"
//! (2008) for derivatives of normalised values.

use rayon::prelude::*;

use super::cell::Cell;
use super::level::Level;
use super::motion::Motion;

/// Farthest translation of the coarse search, in pixels of its level: a sixteenth of the image and more.
const REACH: i32 = 5;
/// Zooms of the coarse search on both sides of none.
const ZOOMS: i32 = 3;
/// Zoom between two candidates: 0.4 pixels at the edges of a level of 64 pixels.
const ZOOM: f64 = 0.0125;
/// Candidates of the coarse search that are refined.
const CANDIDATES: usize = 4;
/// Likeness that a candidate loses for each pixel by which its corners move: of equal ones, the nearest is taken.
const LOSS: f64 = 0.01;
/// Most steps at a level, and the step in pixels that ends them.
const STEPS: usize = 12;
const SMALL_STEP: f64 = 0.003;

/// Searches the motion at the coarsest level, in its pixels.
pub(super) fn search(level: &Level, sides: [f64; 2]) -> Motion {
    let sides = sides.map(|side| side / level.factor);
    let shifts = || -REACH..=REACH;
    let grid = shifts().flat_map(|y| shifts().flat_map(move |x| (-ZOOMS..=ZOOMS).map(move |zoom| [x, y, zoom])));
    let motions: Vec<Motion> = grid
        .map(|[x, y, zoom]| Motion {
            shift: [x, y].map(f64::from),
            scale: 1.0 + ZOOM * f64::from(zoom),
        })
        .collect();
    let rate = |motion: Motion| level.score(motion) * (1.0 - LOSS * motion.at_corners(sides));
    let mut rated: Vec<(f64, Motion)> = motions.into_par_iter().map(|motion| (rate(motion), motion)).collect();
    rated.sort_by(|a, b| b.0.total_cmp(&a.0));
    let refined = rated
        .into_iter()
        .take(CANDIDATES)
        .map(|(_, motion)| refine(level, motion));
    let rated = refined.map(|motion| (rate(motion), motion));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(Motion::IDENTITY, |(_, motion)| motion)
}

/// Refines a motion by Gauss-Newton steps, in pixels of the level.
pub(super) fn refine(level: &Level, mut motion: Motion) -> Motion {
    for _ in 0..STEPS {
        let Some(step) = Normal::of(&level.cells(motion)).step() else {
            break;
        };
        motion = motion.after_inverse(step, level.radius);
        if step.iter().all(|part| part.abs() < SMALL_STEP) {
            break;
        }
    }
    motion
}

/// The normal equations of a step.
pub(super) struct Normal {
    hessian: [[f64; 3]; 3],
    gradient: [f64; 3],
    /// Sum of the cells' own gradients, squared.
    scatter: [[f64; 3]; 3],
}

impl Normal {
    pub(super) fn of(cells: &[Cell]) -> Self {
        let mut normal = Self {
            hessian: [[0.0; 3]; 3],
            gradient: [0.0; 3],
            scatter: [[0.0; 3]; 3],
        };
        for cell in cells {
            let weight = cell.weight();
            for i in 0..3 {
                normal.gradient[i] += weight * cell.gradient[i];
                for j in 0..3 {
                    normal.hessian[i][j] += weight * cell.hessian[i][j];
                    normal.scatter[i][j] += weight * weight * cell.gradient[i] * cell.gradient[j];
                }
            }
        }
        normal
    }

    /// Returns the step; `None` if the cells do not determine it, or it is too far for their gradients.
    fn step(&self) -> Option<[f64; 3]> {
        let inverse = inverse(self.hessian)?;
        let step = [0, 1, 2].map(|i| (0..3).map(|j| inverse[i][j] * self.gradient[j]).sum());
        step.iter().all(|part: &f64| part.abs() < 4.0).then_some(step)
    }

    /// Computes the standard error of the motion at a corner, in pixels of the level, by how much the cells disagree
    /// ("sandwich" estimate); infinite if they do not determine it.
    pub(super) fn error(&self) -> f64 {
        let Some(inverse) = inverse(self.hessian) else {
            return f64::INFINITY;
        };
        let covariance = product(product(inverse, self.scatter), inverse);
        (0..3).map(|i| covariance[i][i]).sum::<f64>().max(0.0).sqrt()
    }
}

fn product(a: [[f64; 3]; 3], b: [[f64; 3]; 3]) -> [[f64; 3]; 3] {
    [0, 1, 2].map(|i| [0, 1, 2].map(|j| (0..3).map(|k| a[i][k] * b[k][j]).sum()))
}

/// Inverts a symmetric matrix; `None` if it is singular or near it.
fn inverse(m: [[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    let minor = |i: usize, j: usize| {
        let [a, b] = [(i + 1) % 3, (i + 2) % 3];
        let [c, d] = [(j + 1) % 3, (j + 2) % 3];
        m[a][c] * m[b][d] - m[a][d] * m[b][c]
    };
    let determinant: f64 = (0..3).map(|j| m[0][j] * minor(0, j)).sum();
    let size = m[0][0] * m[1][1] * m[2][2];
    (determinant > 1e-6 * size).then(|| [0, 1, 2].map(|i| [0, 1, 2].map(|j| minor(j, i) / determinant)))
}
