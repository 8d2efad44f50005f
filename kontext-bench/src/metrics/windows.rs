//! Structural similarity of gaussian windows, which SSIM and MS-SSIM average.

use rayon::prelude::*;

use super::PEAK;
use super::plane::Plane;

/// Side of the gaussian window in pixels; the minimum side of an image.
pub const WINDOW: usize = 2 * RADIUS + 1;

/// Radius of the window: scipy truncates the gaussian at 3.5 standard deviations, `int(3.5 * 1.5 + 0.5)`.
pub(super) const RADIUS: usize = 5;
/// Standard deviation of the window, in pixels.
const SIGMA: f64 = 1.5;
/// Stabilises the comparison of dark windows: `(K1 * 255)²` with Wang's K1.
pub(super) const C1: f64 = (0.01 * PEAK) * (0.01 * PEAK);
/// Stabilises the comparison of flat windows: `(K2 * 255)²` with Wang's K2.
const C2: f64 = (0.03 * PEAK) * (0.03 * PEAK);

/// Reason, for the error, that a smaller image has no similarity.
pub(super) const SMALL: &str = "the size of the window";

/// Window means from which structural similarity is computed: a, b, a², b², ab.
type Moments = [f64; 5];

/// Similarity of one window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Similarity {
    /// Luminance times contrast and structure.
    pub(super) whole: f64,
    /// Contrast and structure only.
    pub(super) contrast: f64,
}

/// Applies `fold` to each row of windows, from the top.
///
/// A row holds the windows whose centres are at least [`RADIUS`] pixels from the sides, with interleaved
/// channels; rows are numbered from 0. Both planes have the same size, at least that of a window. The results
/// are returned in row order, so that sums over them do not depend on the threads.
pub(super) fn rows_of_windows<T: Send>(
    a: &Plane,
    b: &Plane,
    fold: impl Fn(usize, &[Similarity]) -> T + Sync,
) -> Vec<T> {
    let (kernel, stride, channels) = (gaussian(), a.stride(), a.channels);
    let bands = a
        .values
        .par_windows(WINDOW * stride)
        .zip(b.values.par_windows(WINDOW * stride))
        .step_by(stride);
    bands
        .enumerate()
        .map(|(number, (a, b))| fold(number, &row_of_windows(a, b, stride, channels, &kernel)))
        .collect()
}

/// Computes the similarities of all windows within a band of [`WINDOW`] rows of `stride` levels.
fn row_of_windows(a: &[f64], b: &[f64], stride: usize, channels: usize, kernel: &[f64; WINDOW]) -> Vec<Similarity> {
    let mut columns = vec![[0.0; 5]; stride];
    for ((a, b), weight) in a.chunks_exact(stride).zip(b.chunks_exact(stride)).zip(kernel) {
        for ((column, a), b) in columns.iter_mut().zip(a).zip(b) {
            add_weighted(column, &[*a, *b, a * a, b * b, a * b], *weight);
        }
    }
    let similarity_at = |columns: &[Moments]| {
        let mut window = [0.0; 5];
        for (column, weight) in columns.iter().step_by(channels).zip(kernel) {
            add_weighted(&mut window, column, *weight);
        }
        similarity(&window)
    };
    // From a window's first column to its last, in levels.
    columns
        .windows((WINDOW - 1) * channels + 1)
        .map(similarity_at)
        .collect()
}

fn add_weighted(sum: &mut Moments, term: &Moments, weight: f64) {
    for (sum, term) in sum.iter_mut().zip(term) {
        *sum += weight * term;
    }
}

fn similarity([a, b, aa, bb, ab]: &Moments) -> Similarity {
    let (variance_a, variance_b, covariance) = (aa - a * a, bb - b * b, ab - a * b);
    let luminance = (2.0 * a * b + C1) / (a * a + b * b + C1);
    let contrast = (2.0 * covariance + C2) / (variance_a + variance_b + C2);
    Similarity {
        whole: luminance * contrast,
        contrast,
    }
}

/// Returns the window's weights along one axis, which sum to one.
pub(super) fn gaussian() -> [f64; WINDOW] {
    let weight = |tap: usize| (-0.5 * ((tap as f64 - RADIUS as f64) / SIGMA).powi(2)).exp();
    let weights: [f64; WINDOW] = std::array::from_fn(weight);
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}
