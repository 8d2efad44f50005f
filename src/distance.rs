//! Euclidean distance transform of a set of pixels, and a share that falls with the distance.
//!
//! Source: Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions" (2012), section 2.

/// Computes the squared distances in pixels, row by row, from each pixel's centre to that of the nearest
/// pixel of the set; infinite if the set is empty.
pub(crate) fn squared_distances(set: &[bool], width: usize) -> Vec<f64> {
    let mut distances: Vec<f64> = set
        .iter()
        .map(|&inside| if inside { 0.0 } else { f64::INFINITY })
        .collect();
    if width == 0 {
        return distances;
    }
    let height = set.len() / width;
    // Minima along columns first, then their sums along rows.
    for x in 0..width {
        let column: Vec<f64> = (0..height).map(|y| distances[y * width + x]).collect();
        for (y, value) in lower_envelope(&column).into_iter().enumerate() {
            distances[y * width + x] = value;
        }
    }
    for row in distances.chunks_exact_mut(width) {
        row.copy_from_slice(&lower_envelope(row));
    }
    distances
}

/// Returns the share at a distance beyond a set: 1 up to 0, from there falling to 0 over `feather` pixels.
pub(crate) fn falloff(beyond: f64, feather: f64) -> f64 {
    if beyond <= 0.0 {
        1.0
    } else {
        (1.0 - beyond / feather.max(f64::MIN_POSITIVE)).max(0.0)
    }
}

/// Computes `min over q of (p - q)^2 + f(q)`: the lower envelope of parabolas with minima `f(q)`.
fn lower_envelope(f: &[f64]) -> Vec<f64> {
    // Parabolas of the envelope, each with the start of its interval.
    let mut parts: Vec<(usize, f64)> = Vec::new();
    for q in (0..f.len()).filter(|&q| f[q].is_finite()) {
        let height = |at: usize| f[at] + (at * at) as f64;
        let mut begin = f64::NEG_INFINITY;
        while let Some(&(last, last_begin)) = parts.last() {
            begin = (height(q) - height(last)) / (2 * (q - last)) as f64;
            if begin > last_begin {
                break;
            }
            parts.pop();
            begin = f64::NEG_INFINITY;
        }
        parts.push((q, begin));
    }
    let mut index = 0;
    let value = |p: usize| {
        let at = p as f64;
        while parts.get(index + 1).is_some_and(|(_, begin)| *begin < at) {
            index += 1;
        }
        parts
            .get(index)
            .map_or(f64::INFINITY, |&(q, _)| (at - q as f64).powi(2) + f[q])
    };
    (0..f.len()).map(value).collect()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn distances_are_those_to_the_nearest_pixel_of_any_set() {
        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        for share in [0.0, 0.02, 0.2, 0.9] {
            let (width, height) = (13_usize, 9_usize);
            let set: Vec<bool> = (0..width * height).map(|_| random.random_bool(share)).collect();
            let nearest = |index: usize| {
                let squared_distance = |other: usize| {
                    let (dx, dy) = (
                        (index % width).abs_diff(other % width),
                        (index / width).abs_diff(other / width),
                    );
                    (dx * dx + dy * dy) as f64
                };
                (0..set.len())
                    .filter(|&other| set[other])
                    .map(squared_distance)
                    .fold(f64::INFINITY, f64::min)
            };
            let expected: Vec<f64> = (0..set.len()).map(nearest).collect();
            assert_eq!(squared_distances(&set, width), expected, "{share}");
        }
    }
}
