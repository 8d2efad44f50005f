//! The likeness of one cell of the source and of the result, whatever its brightness and contrast.

/// Least pixels of a cell that are compared: half of them.
const LEAST_PIXELS: f32 = 32.0;
/// Least variance of a cell with texture, in levels squared.
const LEAST_VARIANCE: f64 = 1.0;
/// Variance that is added to a cell's, in levels squared: that of the noise that an autoencoder adds. A texture below it
/// counts as no likeness.
const NOISE: f64 = 4.0;
/// Correlation from which a cell is like the other. Unlike cells seldom reach it.
const ALIKE: f64 = 0.5;
/// Correlation of a cell that is the same.
const MATCHED: f64 = 0.7;
/// Share of a cell that differs even where nothing moved, by which a cell's weight stays finite.
const LEAST_DIFFERENCE: f64 = 0.05;

/// Sums over the pixels of a cell: of the source's values, the result's, and the source's gradients.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pixels: f32,
    source: f32,
    result: f32,
    source_squared: f32,
    result_squared: f32,
    product: f32,
    gradient: [f32; 3],
    with_source: [f32; 3],
    with_result: [f32; 3],
    with_curvature: [f32; 3],
    outer: [[f32; 3]; 3],
    curvature: f32,
    curvature_squared: f32,
    curvature_source: f32,
    curvature_result: f32,
}

impl Sums {
    pub(super) fn add(&mut self, source: f32, result: f32) {
        self.pixels += 1.0;
        self.source += source;
        self.result += result;
        self.source_squared += source * source;
        self.result_squared += result * result;
        self.product += source * result;
    }

    /// Adds the derivatives of the source's value by the three parameters of a motion, and its sum of second ones.
    pub(super) fn add_derivatives(&mut self, gradient: [f32; 3], curvature: f32, source: f32, result: f32) {
        for i in 0..3 {
            self.gradient[i] += gradient[i];
            self.with_source[i] += gradient[i] * source;
            self.with_result[i] += gradient[i] * result;
            self.with_curvature[i] += gradient[i] * curvature;
            for j in 0..=i {
                self.outer[i][j] += gradient[i] * gradient[j];
            }
        }
        self.curvature += curvature;
        self.curvature_squared += curvature * curvature;
        self.curvature_source += curvature * source;
        self.curvature_result += curvature * result;
    }

    /// Returns the cell; `None` without enough pixels or texture.
    pub(super) fn cell(&self) -> Option<Cell> {
        let pixels = f64::from(self.pixels);
        // The product of two values without their means in the cell.
        let central = |product: f32, a: f32, b: f32| f64::from(product) - f64::from(a) * f64::from(b) / pixels;
        let variance = central(self.source_squared, self.source, self.source);
        if self.pixels < LEAST_PIXELS || variance < LEAST_VARIANCE * pixels {
            return None;
        }
        let of_result = central(self.result_squared, self.result, self.result);
        let covariance = central(self.product, self.source, self.result);
        let [length, of_result] = [variance, of_result].map(|sum| (sum + NOISE * pixels).sqrt());
        // A gradient may not explain what brightness, contrast (the source itself) or blur (its curvature) do: it is
        // made orthogonal to the source and to the part of the curvature that is orthogonal to it. The latter matters:
        // blur moves a busy cell's edge into its quiet neighbour, by which all seems to move.
        let source = Direction::new(
            variance,
            [0, 1, 2].map(|i| central(self.with_source[i], self.gradient[i], self.source)),
            covariance,
        );
        let shared = central(self.curvature_source, self.curvature, self.source) / variance;
        let curvature = Direction::new(
            central(self.curvature_squared, self.curvature, self.curvature) - shared * shared * variance,
            [0, 1, 2].map(|i| {
                let whole = central(self.with_curvature[i], self.gradient[i], self.curvature);
                whole - shared * source.gradient[i]
            }),
            central(self.curvature_result, self.curvature, self.result) - shared * covariance,
        );
        let hessian = |i: usize, j: usize| {
            let whole = central(self.outer[i.max(j)][i.min(j)], self.gradient[i], self.gradient[j]);
            let along = |direction: &Direction| direction.gradient[i] * direction.gradient[j] / direction.squared;
            (whole - along(&source) - along(&curvature)) / (length * length)
        };
        let gradient = |i: usize| {
            let whole = central(self.with_result[i], self.gradient[i], self.result);
            let along = |direction: &Direction| direction.gradient[i] * direction.result / direction.squared;
            (whole - along(&source) - along(&curvature)) / (length * of_result)
        };
        // Of the source and its curvature together, as a sum of two orthogonal parts.
        let part = |direction: &Direction| direction.result * direction.result / direction.squared;
        let together = ((part(&source) + part(&curvature)).sqrt() / of_result).min(1.0);
        Some(Cell {
            correlation: covariance / (length * of_result),
            blurred_correlation: if covariance > 0.0 { together } else { 0.0 },
            hessian: [0, 1, 2].map(|i| [0, 1, 2].map(|j| hessian(i, j))),
            gradient: [0, 1, 2].map(gradient),
        })
    }
}

/// A vector over a cell's pixels, by its square and its products with the gradients and with the result.
struct Direction {
    squared: f64,
    gradient: [f64; 3],
    result: f64,
}

impl Direction {
    fn new(squared: f64, gradient: [f64; 3], result: f64) -> Self {
        Self {
            // A direction that vanishes takes nothing off.
            squared: squared.max(1e-3),
            gradient,
            result,
        }
    }
}

/// One cell of the source and the pixels of the result at its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    correlation: f64,
    /// Correlation with the source, blurred or sharpened as fits best.
    blurred_correlation: f64,
    /// Products of the derivatives of the source's cell by the three parameters of a motion.
    pub hessian: [[f64; 3]; 3],
    /// Products of these derivatives and the result's cell.
    pub gradient: [f64; 3],
}

impl Cell {
    /// Returns 0 for a cell that is not alike, up to 1 for one that is equal.
    pub(super) fn likeness(&self) -> f64 {
        ((self.correlation - ALIKE) / (1.0 - ALIKE)).max(0.0)
    }

    /// Returns the likeness whatever the sharpness of both cells, which a resampling changes.
    pub(super) fn blurred_likeness(&self) -> f64 {
        ((self.blurred_correlation - ALIKE) / (1.0 - ALIKE)).max(0.0)
    }

    /// Returns `true` if the result has the source's cell.
    pub(super) fn is_matched(&self) -> bool {
        self.correlation > MATCHED
    }

    /// Returns the weight in a fit: the inverse of what differs, and 0 for a cell that is not alike.
    pub(super) fn weight(&self) -> f64 {
        self.likeness() / (1.0 - self.correlation + LEAST_DIFFERENCE)
    }
}
