//! Means with their uncertainty.

use kontext_core::{Error, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Cap on PSNR in means, in dB: equal images have infinite PSNR, and everything above the cap counts as the
/// cap. It exceeds the PSNR of two images that differ only by rounding to 8 bits (58.9 dB).
pub const PSNR_CAP: f64 = 60.0;

/// Confidence of an [`Estimate`]'s interval.
const CONFIDENCE: f64 = 0.95;

/// Number and mean of a set of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Number of values.
    pub count: usize,
    /// Mean of the values.
    pub mean: f64,
    /// Standard error of the mean, `sqrt(sum((x - mean)²) / (n - 1) / n)`; NaN for a single value, for which
    /// it is undefined.
    pub standard_error: f64,
}

impl Summary {
    /// Summarises all values; none is left out.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are no values or one is not finite. PSNR may be infinite: see
    /// [`Summary::of_psnr`].
    ///
    /// # Example
    /// ```
    /// use kontext_bench::statistics::Summary;
    /// let summary = Summary::of(&[1.0, 2.0, 3.0, 4.0])?;
    /// assert_eq!((summary.count, summary.mean), (4, 2.5));
    /// assert!((summary.standard_error - (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn of(values: &[f64]) -> Result<Self> {
        check(values)?;
        let count = values.len();
        let mean = mean(values);
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_error = if count < 2 {
            f64::NAN
        } else {
            (squares / (count - 1) as f64 / count as f64).sqrt()
        };
        Ok(Self {
            count,
            mean,
            standard_error,
        })
    }

    /// Summarises decibels; values above [`PSNR_CAP`], infinite ones included, count as the cap.
    ///
    /// # Errors
    /// Same as [`Summary::of`].
    ///
    /// # Example
    /// ```
    /// use kontext_bench::statistics::Summary;
    /// assert_eq!(Summary::of_psnr(&[30.0, f64::INFINITY])?.mean, 45.0);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn of_psnr(decibels: &[f64]) -> Result<Self> {
        Self::of(&decibels.iter().copied().map(capped).collect::<Vec<_>>())
    }
}

/// A value with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Estimate {
    /// Estimates the mean of values, with its interval by [`bootstrap_interval`] with seed 0.
    ///
    /// # Errors
    /// Same as [`bootstrap_interval`].
    ///
    /// # Example
    /// ```
    /// use kontext_bench::statistics::Estimate;
    /// let estimate = Estimate::of_mean(&[2.0, 2.0], 100)?;
    /// assert_eq!((estimate.value, estimate.low, estimate.high), (2.0, 2.0, 2.0));
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn of_mean(values: &[f64], resamples: usize) -> Result<Self> {
        let (low, high) = bootstrap_interval(values, CONFIDENCE, resamples, 0)?;
        Ok(Self {
            value: mean(values),
            low,
            high,
        })
    }
}

/// A statistic of a set of items, and of each bootstrap draw of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    value: f64,
    draws: Vec<f64>,
}

impl Bootstrap {
    /// Takes a value and those of its draws, which are finite and at least one.
    pub(crate) fn new(value: f64, draws: Vec<f64>) -> Result<Self> {
        check(&draws)?;
        Ok(Self { value, draws })
    }

    /// Returns the statistic of the whole set.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.value
    }

    /// Returns the value with its 95 % interval, by percentiles of the draws.
    #[must_use]
    pub fn estimate(&self) -> Estimate {
        let (low, high) = bounds(self.draws.clone(), CONFIDENCE);
        let value = self.value;
        Estimate { value, low, high }
    }

    /// Returns the difference to another statistic, draw by draw. If both were drawn from sets of items that belong
    /// together, such as two models' results of the same edits, what the draws have in common cancels: the interval is
    /// that of a paired comparison.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the numbers of draws differ.
    pub fn minus(&self, other: &Self) -> Result<Self> {
        Self::new(self.value - other.value, paired_differences(&self.draws, &other.draws)?)
    }
}

/// Draws with replacement from sets, for the bootstrap of other statistics than the mean.
#[derive(Debug)]
pub(crate) struct Resamples(ChaCha8Rng);

impl Resamples {
    /// Starts the draws of a seed, of which there will be `resamples`.
    pub(crate) fn new(resamples: usize, seed: u64) -> Result<Self> {
        if resamples == 0 {
            return Err(Error::invalid("resamples", "at least 1", resamples));
        }
        Ok(Self(ChaCha8Rng::seed_from_u64(seed)))
    }

    /// Draws as many of `count` items as there are, at least 2 of them different; returns how often each was drawn.
    pub(crate) fn counts(&mut self, count: usize) -> Vec<f64> {
        loop {
            let mut counts = vec![0.0; count];
            for _ in 0..count {
                if let Some(drawn) = counts.get_mut(index(self.0.next_u64(), count)) {
                    *drawn += 1.0;
                }
            }
            // A single item has no pair of different ones.
            if count < 2 || counts.iter().all(|drawn| *drawn < count as f64) {
                return counts;
            }
        }
    }
}

/// Caps decibels at [`PSNR_CAP`] for means. Not by `min`, which would replace NaN with the cap.
pub(crate) fn capped(decibels: f64) -> f64 {
    if decibels > PSNR_CAP { PSNR_CAP } else { decibels }
}

/// Returns `a - b` of each pair. For two methods on the same images, a summary of these says more than two
/// separate summaries.
///
/// # Errors
/// [`Error::InvalidArgument`] if the lengths differ.
pub fn paired_differences(a: &[f64], b: &[f64]) -> Result<Vec<f64>> {
    if a.len() != b.len() {
        let got = format!("{} and {}", a.len(), b.len());
        return Err(Error::invalid("values", "as many of one as of the other", got));
    }
    Ok(a.iter().zip(b).map(|(a, b)| a - b).collect())
}

/// Computes the bounds of the mean at this confidence, as percentiles of the means of `resamples` draws with
/// replacement. A seed gives the same interval on any machine.
///
/// Equal, except for the draws, to `scipy.stats.bootstrap(…, np.mean, method="percentile")`.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are no values, a value is not finite, the confidence is not between 0
/// and 1, or `resamples` is 0.
///
/// # Example
/// ```
/// use kontext_bench::statistics::bootstrap_interval;
/// let values: Vec<f64> = (0..100).map(f64::from).collect();
/// let (low, high) = bootstrap_interval(&values, 0.95, 1000, 7)?;
/// assert!(low < 49.5 && 49.5 < high && high - low < 15.0);
/// assert_eq!((low, high), bootstrap_interval(&values, 0.95, 1000, 7)?);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn bootstrap_interval(values: &[f64], confidence: f64, resamples: usize, seed: u64) -> Result<(f64, f64)> {
    check(values)?;
    if !(confidence > 0.0 && confidence < 1.0) {
        return Err(Error::invalid("confidence", "a number between 0 and 1", confidence));
    }
    if resamples == 0 {
        return Err(Error::invalid("resamples", "at least 1", resamples));
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let means: Vec<f64> = (0..resamples)
        .map(|_| {
            let drawn = (0..values.len()).filter_map(|_| values.get(index(random.next_u64(), values.len())));
            drawn.sum::<f64>() / values.len() as f64
        })
        .collect();
    Ok(bounds(means, confidence))
}

/// Returns the percentiles between which values lie at this confidence.
fn bounds(mut values: Vec<f64>, confidence: f64) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let tail = 0.5 * (1.0 - confidence);
    (quantile(&values, tail), quantile(&values, 1.0 - tail))
}

/// Maps 64 random bits to an integer below `count`, in proportion to their range. The bias is below 2^-32 for
/// fewer than 2^32 values.
pub(crate) fn index(bits: u64, count: usize) -> usize {
    ((u128::from(bits) * count as u128) >> u64::BITS) as usize
}

/// Returns a quantile of sorted values, interpolated linearly (numpy's `linear`).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let value = |index: f64| sorted.get(index as usize).copied().unwrap_or_default();
    let (below, above) = (value(at.floor()), value(at.ceil()));
    below + (above - below) * at.fract()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn check(values: &[f64]) -> Result<()> {
    if values.is_empty() {
        return Err(Error::invalid("values", "at least one", "none"));
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => {
            let got = values.get(at).copied().unwrap_or_default();
            Err(Error::invalid(
                "values",
                "finite numbers",
                format!("{got} at index {at}"),
            ))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_tells_nothing_of_its_error() {
        let summary = Summary::of(&[3.0]).unwrap();
        assert_eq!((summary.count, summary.mean), (1, 3.0));
        assert!(summary.standard_error.is_nan());
    }

    #[test]
    fn infinite_values_are_refused_unless_they_are_decibels() {
        let error = Summary::of(&[1.0, f64::INFINITY]).unwrap_err().to_string();
        assert_eq!(error, "invalid values: expected finite numbers, got inf at index 1");
        assert_eq!(Summary::of_psnr(&[f64::INFINITY]).unwrap().mean, PSNR_CAP);
        assert!(Summary::of_psnr(&[1.0, f64::NAN]).is_err());
        assert!(Summary::of(&[]).unwrap_err().to_string().contains("at least one"));
    }

    #[test]
    fn the_interval_of_equal_values_is_their_value() {
        assert_eq!(bootstrap_interval(&[2.5; 9], 0.9, 50, 1).unwrap(), (2.5, 2.5));
    }

    #[test]
    fn other_seeds_draw_other_values() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
        let interval = |seed| bootstrap_interval(&values, 0.8, 200, seed).unwrap();
        assert_ne!(interval(1), interval(2));
        assert!(bootstrap_interval(&values, 1.0, 10, 0).is_err() && bootstrap_interval(&values, 0.5, 0, 0).is_err());
    }

    #[test]
    fn quantiles_lie_between_values() {
        assert_eq!(quantile(&[0.0, 1.0, 4.0], 0.75), 2.5);
    }
}
