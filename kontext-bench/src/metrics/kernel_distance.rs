//! Distance between the distributions of two sets of vectors.
//!
//! Source: Bińkowski et al., "Demystifying MMD GANs" (2018), section 4 and appendix E; the estimators are
//! `mmd_est='unbiased'` and `'u-statistic'` of mbinkowski/MMD-GAN `gan/compute_scores.py`.

use kontext_core::{Error, Result, threads};
use rayon::prelude::*;

use crate::statistics::{Bootstrap, Resamples};

/// Relation of the two sets of a distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Samples {
    /// Sets drawn apart, of any two sizes: the distance as published.
    Independent,
    /// Sets of one size whose items of one index belong together, such as a result and the true image of the
    /// same edit. Their likeness says nothing of the distributions, so these pairs are left out of the sum, and
    /// resamples draw pairs. With [`Samples::Independent`] the distance of such sets is too small, the more so
    /// the nearer each result is to its truth.
    Paired,
}

/// Computes the squared maximum mean discrepancy of two sets of vectors of length d under the kernel
/// `(x·y / d + 1)³`, without bias: near 0 for sets of one distribution, and below it in half of such cases. In
/// f64; the result does not depend on the number of threads.
///
/// The bootstrap has `resamples` draws of each set, or of pairs, with seed 0: sets of equal sizes have equal draws, so that
/// the difference of two distances to the same set ([`Bootstrap::minus`]) is a paired comparison. An item that is
/// drawn twice is not compared with itself, so that the draws are centred on the distance.
///
/// # Errors
/// [`Error::InvalidArgument`] for sets of fewer than 2 vectors, vectors of different lengths or with values
/// that are not finite, paired sets of different sizes, or no resamples.
///
/// # Example
/// ```
/// use kontext_bench::metrics::{Samples, kernel_distance};
/// let set = |shift: f32| (0..40).map(|n| vec![(n % 7) as f32 + shift, (n % 5) as f32]).collect::<Vec<_>>();
/// let distance = |shift| kernel_distance(&set(shift), &set(0.0), Samples::Paired, 200);
/// assert!(distance(0.0)?.value().abs() < 1e-9);
/// assert!(distance(1.0)?.estimate().low > 0.0);
/// assert!(distance(2.0)?.minus(&distance(1.0)?)?.estimate().low > 0.0);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn kernel_distance(a: &[Vec<f32>], b: &[Vec<f32>], samples: Samples, resamples: usize) -> Result<Bootstrap> {
    check("vectors", a)?;
    check("vectors", b)?;
    let length = |set: &[Vec<f32>]| set.first().map(Vec::len).unwrap_or_default();
    if length(a) != length(b) {
        let got = format!("{} and {}", length(a), length(b));
        return Err(Error::invalid("vectors", "two sets of one length", got));
    }
    if samples == Samples::Paired && a.len() != b.len() {
        let got = format!("{} and {}", a.len(), b.len());
        return Err(Error::invalid(
            "vectors",
            "as many of one set as of the other, in pairs",
            got,
        ));
    }
    threads::start()?;
    let (aa, bb, ab) = (kernel(a, a), kernel(b, b), kernel(a, b));
    let distance = |of_a: &[f64], of_b: &[f64]| {
        let within = apart(&aa, of_a, of_a) + apart(&bb, of_b, of_b);
        within
            - 2.0
                * if samples == Samples::Paired {
                    apart(&ab, of_a, of_b)
                } else {
                    whole(&ab, of_a, of_b)
                }
    };
    let mut draws = Resamples::new(resamples, 0)?;
    let value = distance(&vec![1.0; a.len()], &vec![1.0; b.len()]);
    let drawn: Vec<(Vec<f64>, Vec<f64>)> = (0..resamples)
        .map(|_| {
            let of_a = draws.counts(a.len());
            let of_b = if samples == Samples::Paired {
                of_a.clone()
            } else {
                draws.counts(b.len())
            };
            (of_a, of_b)
        })
        .collect();
    let values = drawn.par_iter().map(|(of_a, of_b)| distance(of_a, of_b)).collect();
    Bootstrap::new(value, values)
}

/// Kernel values of all pairs of two sets, row by row.
struct Kernel {
    values: Vec<f64>,
    columns: usize,
}

fn kernel(a: &[Vec<f32>], b: &[Vec<f32>]) -> Kernel {
    let value = |x: &[f32], y: &[f32]| {
        let dot: f64 = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        (dot / x.len() as f64 + 1.0).powi(3)
    };
    let row = |x: &Vec<f32>| b.iter().map(|y| value(x, y)).collect::<Vec<_>>();
    Kernel {
        values: a.par_iter().flat_map_iter(row).collect(),
        columns: b.len(),
    }
}

/// Averages a kernel over all pairs, with a weight for each item.
fn whole(kernel: &Kernel, rows: &[f64], columns: &[f64]) -> f64 {
    total(kernel, rows, columns) / (rows.iter().sum::<f64>() * columns.iter().sum::<f64>())
}

/// Averages a kernel over all pairs of items with different indices.
fn apart(kernel: &Kernel, rows: &[f64], columns: &[f64]) -> f64 {
    let diagonal = kernel.values.iter().step_by(kernel.columns + 1);
    let weights = || rows.iter().zip(columns).map(|(row, column)| row * column);
    let same: f64 = diagonal.zip(weights()).map(|(value, weight)| value * weight).sum();
    let weight = rows.iter().sum::<f64>() * columns.iter().sum::<f64>() - weights().sum::<f64>();
    (total(kernel, rows, columns) - same) / weight
}

fn total(kernel: &Kernel, rows: &[f64], columns: &[f64]) -> f64 {
    let row = |values: &[f64]| {
        values
            .iter()
            .zip(columns)
            .map(|(value, weight)| value * weight)
            .sum::<f64>()
    };
    let rows = kernel.values.chunks_exact(kernel.columns).zip(rows);
    rows.map(|(values, weight)| if *weight == 0.0 { 0.0 } else { weight * row(values) })
        .sum()
}

/// Checks a set: at least two vectors, of one length, finite.
pub(super) fn check(name: &'static str, set: &[Vec<f32>]) -> Result<()> {
    let Some(first) = set.first().filter(|first| set.len() > 1 && !first.is_empty()) else {
        return Err(Error::invalid(name, "at least 2 that are not empty", set.len()));
    };
    for (index, vector) in set.iter().enumerate() {
        if vector.len() != first.len() {
            let got = format!("{} at index {index}", vector.len());
            return Err(Error::invalid(name, format!("all of length {}", first.len()), got));
        }
        if let Some(value) = vector.iter().find(|value| !value.is_finite()) {
            let got = format!("{value} at index {index}");
            return Err(Error::invalid(name, "finite numbers", got));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, Kind, array, noise};

    use super::*;

    /// Draws vectors of 6 normal values, the first shifted.
    fn normal(count: i64, seed: u64, shift: f32) -> Vec<Vec<f32>> {
        let values = array::to_vec(&noise::randn(&[count, 6], seed, Kind::Float, Device::Cpu).unwrap()).unwrap();
        let mut vectors: Vec<Vec<f32>> = values.chunks_exact(6).map(<[f32]>::to_vec).collect();
        vectors.iter_mut().for_each(|vector| vector[0] += shift);
        vectors
    }

    #[test]
    fn intervals_hold_the_distance_of_the_distributions_as_often_as_they_say() {
        // The expectation, from sets that are large enough.
        let exact = kernel_distance(&normal(1500, 1, 1.0), &normal(1500, 2, 0.0), Samples::Independent, 1)
            .unwrap()
            .value();
        let (mut held, mut near) = (0, 0);
        for seed in 0..60 {
            let (a, b) = (normal(60, 1000 + seed, 1.0), normal(60, 2000 + seed, 0.0));
            let estimate = kernel_distance(&a, &b, Samples::Independent, 300).unwrap().estimate();
            held += usize::from((estimate.low..=estimate.high).contains(&exact));
            // The same two sets, but as pairs: as unbiased, since these do not belong together.
            let paired = kernel_distance(&a, &b, Samples::Paired, 300).unwrap().estimate();
            near += usize::from((paired.low..=paired.high).contains(&exact));
        }
        assert!(
            (51..=60).contains(&held) && (51..=60).contains(&near),
            "{held} and {near} of 60"
        );
    }

    #[test]
    fn sets_of_one_distribution_are_at_zero_and_shifts_add_to_it() {
        let distance = |shift| kernel_distance(&normal(400, 3, shift), &normal(400, 4, 0.0), Samples::Independent, 200);
        let same = distance(0.0).unwrap().estimate();
        assert!(same.value.abs() < 0.02 && same.low < 0.0, "{same:?}");
        let far: Vec<f64> = [0.5, 1.0, 2.0].map(|shift| distance(shift).unwrap().value()).into();
        assert!(same.value < far[0] && far[0] < far[1] && far[1] < far[2], "{far:?}");
    }

    #[test]
    fn likeness_within_pairs_does_not_count() {
        // Truths with little noise: two draws of nearly the same distribution.
        let truths = normal(40, 5, 0.0);
        let mut results = normal(40, 6, 0.0);
        for (result, truth) in results.iter_mut().zip(&truths) {
            result.iter_mut().zip(truth).for_each(|(x, y)| *x = y + 0.01 * *x);
        }
        let paired = kernel_distance(&results, &truths, Samples::Paired, 200)
            .unwrap()
            .estimate();
        let independent = kernel_distance(&results, &truths, Samples::Independent, 200)
            .unwrap()
            .estimate();
        assert!(paired.value.abs() < 0.01, "{paired:?}");
        assert!(independent.value < -0.1, "{independent:?}");
    }

    #[test]
    fn a_paired_comparison_finds_what_two_intervals_do_not() {
        let truths = normal(60, 9, 0.0);
        let near = normal(60, 10, 1.0);
        let mut far = near.clone();
        far.iter_mut().for_each(|vector| vector[0] += 0.2);
        let distance = |set: &[Vec<f32>]| kernel_distance(set, &truths, Samples::Paired, 400).unwrap();
        let (near, far) = (distance(&near), distance(&far));
        assert!(far.estimate().low < near.estimate().high);
        let more = far.minus(&near).unwrap();
        assert_eq!(more.value(), far.value() - near.value());
        let (more, same) = (more.estimate(), near.minus(&near).unwrap().estimate());
        assert!(more.low > 0.0 && more.high > more.low, "{more:?}");
        assert_eq!((same.value, same.low, same.high), (0.0, 0.0, 0.0));
    }

    #[test]
    fn sets_of_two_have_an_interval() {
        for samples in [Samples::Paired, Samples::Independent] {
            let estimate = kernel_distance(&normal(2, 7, 1.0), &normal(2, 8, 0.0), samples, 100)
                .unwrap()
                .estimate();
            assert!(estimate.low.is_finite() && estimate.high.is_finite(), "{estimate:?}");
        }
    }

    #[test]
    fn sets_that_cannot_be_compared_are_refused() {
        let words = |a: &[Vec<f32>], b: &[Vec<f32>], samples, resamples| {
            kernel_distance(a, b, samples, resamples).unwrap_err().to_string()
        };
        let two = vec![vec![1.0, 2.0]; 2];
        let three = vec![vec![1.0, 2.0]; 3];
        assert!(words(&two[..1], &two, Samples::Independent, 9).contains("at least 2"));
        assert!(words(&two, &vec![vec![1.0]; 2], Samples::Independent, 9).contains("2 and 1"));
        assert!(words(&two, &three, Samples::Paired, 9).contains("2 and 3"));
        assert!(words(&two, &[vec![1.0, 2.0], vec![f32::NAN, 0.0]], Samples::Paired, 9).contains("NaN at index 1"));
        assert!(words(&two, &three, Samples::Independent, 0).contains("resamples"));
    }
}
