//! Latency of edits: quantiles and a histogram.

use std::fmt;

use super::Timing;

/// Number of bars in the histogram.
const BARS: usize = 12;
/// Length of its longest bar, in characters.
const LONGEST: usize = 40;

/// Latencies of many edits, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Latency {
    /// Seconds per edit, ascending.
    edits: Vec<f64>,
    /// Seconds per step of each edit, ascending.
    steps: Vec<f64>,
}

impl Latency {
    /// Collects timings; `None` if there are none.
    #[must_use]
    pub fn of(timings: &[Timing]) -> Option<Self> {
        let sorted = |values: &mut dyn Iterator<Item = f64>| {
            let mut values: Vec<f64> = values.collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let edits = sorted(&mut timings.iter().map(|timing| timing.seconds));
        let with_steps = timings.iter().filter(|timing| timing.steps > 0);
        let steps = sorted(&mut with_steps.map(|timing| timing.seconds / timing.steps as f64));
        (!edits.is_empty()).then_some(Self { edits, steps })
    }

    /// Returns a quantile of the latencies in seconds, by nearest rank, so always a measured time.
    ///
    /// ```
    /// use kontext_bench::kontextbench::{Latency, Timing};
    /// let timing = |seconds| Timing { key: String::new(), seconds, steps: 4 };
    /// let latency = Latency::of(&(1..=10).map(|n| timing(f64::from(n))).collect::<Vec<_>>()).unwrap();
    /// assert_eq!([0.0, 0.5, 0.9, 1.0].map(|share| latency.quantile(share)), [1.0, 5.0, 9.0, 10.0]);
    /// ```
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        nearest_rank(&self.edits, share)
    }
}

fn nearest_rank(sorted: &[f64], share: f64) -> f64 {
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Formats Markdown: a table, and a histogram from the shortest to the longest time.
impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| seconds | n | min | median | p90 | p99 | max |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
        )?;
        for (name, values) in [("an edit", &self.edits), ("a step, all else included", &self.steps)] {
            if !values.is_empty() {
                let quantiles = [0.0, 0.5, 0.9, 0.99, 1.0].map(|share| format!("{:.3}", nearest_rank(values, share)));
                writeln!(f, "| {name} | {} | {} |", values.len(), quantiles.join(" | "))?;
            }
        }
        let (least, most) = (self.quantile(0.0), self.quantile(1.0));
        let width = (most - least) / BARS as f64;
        let mut counts = [0_usize; BARS];
        for seconds in &self.edits {
            let bar = if width > 0.0 {
                ((seconds - least) / width) as usize
            } else {
                0
            };
            counts[bar.min(BARS - 1)] += 1;
        }
        let highest = counts.iter().copied().max().unwrap_or_default().max(1);
        writeln!(f, "\n```text")?;
        for (bar, count) in counts.into_iter().enumerate() {
            let from = least + width * bar as f64;
            let length = (count * LONGEST).div_ceil(highest);
            writeln!(f, "{from:>9.3} s {:LONGEST$} {count}", "#".repeat(length))?;
        }
        writeln!(f, "```")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_every_edit() {
        let timing = |seconds| Timing {
            key: String::new(),
            seconds,
            steps: 2,
        };
        let timings: Vec<Timing> = [1.0, 1.1, 1.2, 13.0].into_iter().map(timing).collect();
        let text = Latency::of(&timings).unwrap().to_string();
        assert!(
            text.contains("| an edit | 4 | 1.000 | 1.100 | 13.000 | 13.000 | 13.000 |"),
            "{text}"
        );
        assert!(
            text.contains("| a step, all else included | 4 | 0.500 | 0.550 |"),
            "{text}"
        );
        let counts: Vec<usize> = text
            .lines()
            .filter(|line| line.contains(" s "))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(counts, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn equal_times_are_one_bar() {
        let timing = Timing {
            key: String::new(),
            seconds: 2.0,
            steps: 0,
        };
        let text = Latency::of(&[timing.clone(), timing]).unwrap().to_string();
        assert!(
            text.contains("2.000 s ######################################## 2") && !text.contains("a step"),
            "{text}"
        );
        assert_eq!(Latency::of(&[]), None);
    }
}
