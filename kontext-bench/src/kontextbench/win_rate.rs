//! Win rates from votes, with intervals.

use std::collections::BTreeMap;
use std::fmt;

use super::Vote;
use crate::statistics::Estimate;

/// Standard normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.959_963_985;

/// Win rate of one run against another.
#[derive(Debug, Clone, PartialEq)]
pub struct WinRate {
    /// The run.
    pub run: String,
    /// The other run.
    pub against: String,
    /// The category; `None` for all.
    pub category: Option<String>,
    /// Votes for the run, for the other, and ties.
    pub votes: [usize; 3],
    /// Share of the votes, ties counted half, with Wilson's interval.
    pub rate: Estimate,
}

/// Computes Wilson's interval for a share of `n`; the whole range if `n` is 0.
///
/// Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
///
/// ```
/// let rate = kontext_bench::kontextbench::wilson(8.0, 10.0);
/// assert_eq!(rate.value, 0.8);
/// assert!((rate.low - 0.4902).abs() < 1e-4 && (rate.high - 0.9433).abs() < 1e-4);
/// ```
#[must_use]
pub fn wilson(wins: f64, n: f64) -> Estimate {
    if n <= 0.0 {
        return Estimate {
            value: 0.5,
            low: 0.0,
            high: 1.0,
        };
    }
    let (p, z2) = (wins / n, Z * Z / n);
    let middle = (p + z2 / 2.0) / (1.0 + z2);
    let half = Z / (1.0 + z2) * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt();
    Estimate {
        value: p,
        low: (middle - half).max(0.0),
        high: (middle + half).min(1.0),
    }
}

/// Computes the win rate of each two runs that were compared, by category and overall; each rate is that of
/// the run whose name comes first alphabetically.
#[must_use]
pub fn win_rates(votes: &[Vote]) -> Vec<WinRate> {
    let mut counts = BTreeMap::<(&str, &str, Option<&str>), [usize; 3]>::new();
    for vote in votes {
        let swapped = vote.left > vote.right;
        let (run, against) = if swapped {
            (&vote.right, &vote.left)
        } else {
            (&vote.left, &vote.right)
        };
        let score = if swapped {
            1.0 - vote.left_score()
        } else {
            vote.left_score()
        };
        let slot = if score > 0.5 {
            0
        } else if score < 0.5 {
            1
        } else {
            2
        };
        for category in [None, Some(vote.category.as_str())] {
            counts.entry((run, against, category)).or_default()[slot] += 1;
        }
    }
    let rate = |((run, against, category), votes): ((&str, &str, Option<&str>), [usize; 3])| {
        let [won, lost, tied] = votes.map(|count| count as f64);
        WinRate {
            run: run.to_owned(),
            against: against.to_owned(),
            category: category.map(str::to_owned),
            votes,
            rate: wilson(won + tied / 2.0, won + lost + tied),
        }
    };
    counts.into_iter().map(rate).collect()
}

/// Formats the rate as "62 % (48 to 74)".
impl fmt::Display for WinRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Estimate { value, low, high } = self.rate;
        write!(f, "{:.0} % ({:.0} to {:.0})", 100.0 * value, 100.0 * low, 100.0 * high)
    }
}
